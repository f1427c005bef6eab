"""Python's own door: Trainer and Run, and the pieces of a training loop of one's own. `unmask` has their names."""
