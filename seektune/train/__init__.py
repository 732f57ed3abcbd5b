"""Training: the loop, its optimizer step, guards, checkpoints, metrics and report."""
