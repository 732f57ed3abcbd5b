"""DeepSeek-V4 for one device: what the model computes, named as the released checkpoint names it."""
