"""What only a GPU can show; skipped where there is none: `pytest tests/gpu` on a machine with one."""
