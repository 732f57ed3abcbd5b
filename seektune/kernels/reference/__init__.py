"""Plain torch definitions of the kernels: short, differentiable, in memory linear in tokens."""
