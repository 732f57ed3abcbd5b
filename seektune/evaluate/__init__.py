"""Exams: what a model knows, measured the way others measure it."""
