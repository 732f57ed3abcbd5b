"""One page per verb; start reading here."""
