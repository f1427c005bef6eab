"""The published methods, one file each. Torch-free to import.

A new method is one file here, with its import and its name in `__all__` below; one outside the package is given as
FILE.py:NAME.
"""

from unmask.methods.base import Method

# The table of methods, in the order in which they are listed.
# isort: off
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.wd1 import WD1
from unmask.methods.unigrpo import UniGRPO
from unmask.methods.coupled_grpo import CoupledGRPO
from unmask.methods.spg import SPG
from unmask.methods.gdpo import GDPO
from unmask.methods.espo import ESPO
from unmask.methods.rspo import RSPO
from unmask.methods.lfpo import LFPO
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.vrpo import VRPO
from unmask.methods.mdpo import MDPO
from unmask.methods.dispo import DiSPO
from unmask.methods.tracerl import TraceRL
from unmask.methods.d2 import StepMerge
# isort: on

# Every class above, by its name: those that implement the protocol, in the order in which they were imported.
METHODS: dict[str, type[Method]] = {method.name: method for method in Method.__subclasses__()}

__all__ = [
    "ESPO",
    "GDPO",
    "LFPO",
    "MDPO",
    "METHODS",
    "RSPO",
    "SPG",
    "VRPO",
    "WD1",
    "CoupledGRPO",
    "DiSPO",
    "DiffuGRPO",
    "JustGRPO",
    "Method",
    "StepMerge",
    "TraceRL",
    "UniGRPO",
]
