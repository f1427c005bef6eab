"""Training: where completions come from, optimizer steps, the loop, run directories and checkpoints."""
