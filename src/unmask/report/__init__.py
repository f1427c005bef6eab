"""What a run shows and writes: progress, metrics, warnings of collapse, learning curve, denoising."""
