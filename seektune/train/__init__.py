"""The loop: what a step is, what it is measured by, and what a run leaves behind."""
