"""Recipes: the typed Recipe, its YAML file with dotted overrides, and checks across sections."""
