"""Conversations in the forms that datasets have: read, checked, and written as training texts."""
