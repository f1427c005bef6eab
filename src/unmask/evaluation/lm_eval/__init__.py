"""Models of unmask under lm-evaluation-harness (the extra `lm-eval`): `python -m unmask.harness`."""
