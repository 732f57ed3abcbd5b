"""The same operations as in `reference`, as Triton kernels for NVIDIA GPUs; each module is imported when first needed.

Proven equal to the plain ones by Triton's interpreter on a CPU. They have never run, let alone been timed, on a GPU.
"""
