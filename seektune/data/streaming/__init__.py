"""Streamed rows: read, encoded and packed while training runs, for data that does not fit a disk."""
