"""Prepared examples: encoded once, kept on disk, and chosen from."""
