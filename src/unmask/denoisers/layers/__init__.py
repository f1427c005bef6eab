"""How decoder layers run: with fewer passes over memory, compiled, recomputed in the backward pass."""
