"""The key-value cache: what a layer keeps, how a call continues from it, and rows that join and leave."""
