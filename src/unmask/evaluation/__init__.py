"""Held-out figures: solve rates and their intervals, tables, one completion shown, lm-evaluation-harness."""
