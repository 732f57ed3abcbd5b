"""The chat format of DeepSeek-V4: encodes messages as prompts, and parses completions into messages."""
