"""The commands, one module each; start reading here."""
