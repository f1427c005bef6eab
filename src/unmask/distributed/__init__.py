"""Ranks: which part of the work is this process's, on which device, and what crosses between processes."""

from unmask.distributed.world import World, best_device

__all__ = ["World", "best_device"]
