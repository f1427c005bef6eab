"""The published methods, one file each."""

from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.dispo import DiSPO
from unmask.methods.mdpo import MDPO

__all__ = ["MDPO", "METHODS", "DiSPO", "DiffuGRPO"]

METHODS = {method.name: method for method in (DiffuGRPO, MDPO, DiSPO)}
