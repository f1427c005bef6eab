"""Sampling completions. Read `reference` first: the whole sampler, plain.

The fast one: `sampler` (settings, call) > `block` (loop over steps) > `recording` > `step` (propose, observe, commit),
with `batching` (which samples run), `columns` (what a forward runs), `context` and `state` (what a call keeps and what
the loop changes), `proposals` (draws), `snapshots`. Pieces to choose: `unmasking`, `schedules`, `caching`, `records`.
"""
