"""A model behind OpenAI's API, for trying it out: requests that are decoded together, and a page to chat on."""
