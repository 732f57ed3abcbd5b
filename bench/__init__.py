"""Benchmarks; each file is a script, and `gpu` has the parts of `gpu_all.py`."""
