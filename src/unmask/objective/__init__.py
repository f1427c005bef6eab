"""The loss of a method: maskings, advantages, likelihoods, surrogates and KL penalties, and the terms they make."""

from unmask.objective.term import Term, record_of

__all__ = ["Term", "record_of"]
