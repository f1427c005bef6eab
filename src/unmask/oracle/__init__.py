"""Exact checks: a denoiser small enough to enumerate, and bias and noise of every method's gradient on it."""
