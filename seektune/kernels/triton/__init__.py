"""The operations of `reference` for NVIDIA GPUs, as Triton kernels or with torch's tensor core products.

Each module is imported on first use. Tests compare the kernels with `reference` in Triton's interpreter on a CPU; tests
that need a GPU are in `tests/gpu`.
"""
