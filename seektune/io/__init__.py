"""Files: written whole or not at all, JSON lines, and the cache folder."""
