"""Triton twins of the kernels, same names and signatures; equal under the interpreter, not timed on a GPU."""
