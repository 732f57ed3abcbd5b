"""Starting processes: a launcher on each node starts that node's workers, and all of them end or restart together."""
