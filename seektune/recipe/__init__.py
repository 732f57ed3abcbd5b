"""What the user writes: one typed Recipe, its YAML file with dotted overrides, and the checks between sections."""
