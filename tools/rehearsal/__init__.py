"""Stand-ins for the published checkpoints, and the dress rehearsal of every recipe for a real model on them."""
