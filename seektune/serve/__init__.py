"""An OpenAI-compatible server to try a model out: requests are decoded together, and `/` is a chat page."""
