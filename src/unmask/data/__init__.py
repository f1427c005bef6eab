"""Examples, prompts and tokens: chat templates, tokenization, readers of files."""
