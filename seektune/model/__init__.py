"""DeepSeek-V4 on one device; parameters are named as in the released checkpoint."""
