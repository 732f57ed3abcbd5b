"""The chat format of DeepSeek-V4: messages into prompts, and completions back into messages."""
