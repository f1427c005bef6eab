"""From hidden states to a few numbers a position, without holding logits of all positions at once."""
