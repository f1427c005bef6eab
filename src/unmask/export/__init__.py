"""Models to share: a directory with weights, tokenizer, adapters, model card and citation, and its way to the Hub."""
