"""DeepSeek's own GPU kernels as implementations of our operations, where their packages are installed.

Each module has PACKAGE, what must be importable, `supports`, which says whether the kernel takes these arguments,
`trains`, which says whether it has all gradients that training needs, and a function with the operation's name.
docs/deepseek-kernels.md has the contracts and where they were read.
"""
