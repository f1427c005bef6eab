"""`unmask plan`: memory of each GPU, forwards, FLOPs and time of a training step, before a recipe is run."""
