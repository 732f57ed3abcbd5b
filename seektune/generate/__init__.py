"""Speech: tokens drawn from a model one after the other, and the text that they are."""
