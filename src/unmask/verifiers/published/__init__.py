"""Scorings of published evaluations, reproduced verdict for verdict."""
