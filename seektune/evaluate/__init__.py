"""Evaluation: tasks, scores with intervals, and comparisons of two models."""
