"""How layers run: fused, compiled, recomputed."""
