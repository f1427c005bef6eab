"""From hidden states to a few numbers a position, logits never all there at once."""
