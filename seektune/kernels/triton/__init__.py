"""The same operations as in `reference` for NVIDIA GPUs, in Triton or by torch's products for tensor cores.

Each module is imported when first needed. Triton's interpreter proves its kernels equal to the plain ones on a CPU;
what a GPU alone can show is in `tests/gpu`.
"""
