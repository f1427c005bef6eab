"""The published methods, one file each."""

from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.dispo import DiSPO
from unmask.methods.mdpo import MDPO

METHODS = {method.name: method for method in (DiffuGRPO, MDPO, DiSPO)}
