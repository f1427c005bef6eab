"""What tests share: small models and runs, processes, reference numbers, rollouts made by hand."""
