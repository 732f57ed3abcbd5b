"""How long tests wait for what must come."""

HUNG = 1800.0
"""Seconds after which a test gives up; they only end one that hangs, on however slow a machine."""
