"""Sampling completions: the denoising loop, unmasking rules and schedules, caches, recorded states."""
