"""What a recipe takes before it is run: memory of each GPU, forwards, FLOPs and time of a training step."""
