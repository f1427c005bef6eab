"""What is minimised: masks, advantages, likelihoods, surrogates and divergences, and the terms they make."""

from unmask.objective.term import Term, record_of

__all__ = ["Term", "record_of"]
