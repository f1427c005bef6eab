"""Faults that a run must survive: `make faults` tries them on small runs and prints what was lost."""
