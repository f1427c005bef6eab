"""A denoiser small enough to enumerate, and what every method's gradient is on it."""
