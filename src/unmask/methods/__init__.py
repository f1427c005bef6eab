"""The published methods, one file each. Torch-free to import.

A new method is one file here and one line below; a method outside the package is given as FILE.py:NAME.
"""

from unmask.methods.base import Method as Method

# The table of methods, in the order in which they are listed.
# isort: off
from unmask.methods.diffu_grpo import DiffuGRPO as DiffuGRPO
from unmask.methods.wd1 import WD1 as WD1
from unmask.methods.unigrpo import UniGRPO as UniGRPO
from unmask.methods.coupled_grpo import CoupledGRPO as CoupledGRPO
from unmask.methods.spg import SPG as SPG
from unmask.methods.gdpo import GDPO as GDPO
from unmask.methods.espo import ESPO as ESPO
from unmask.methods.rspo import RSPO as RSPO
from unmask.methods.lfpo import LFPO as LFPO
from unmask.methods.just_grpo import JustGRPO as JustGRPO
from unmask.methods.vrpo import VRPO as VRPO
from unmask.methods.mdpo import MDPO as MDPO
from unmask.methods.dispo import DiSPO as DiSPO
from unmask.methods.tracerl import TraceRL as TraceRL
from unmask.methods.d2 import StepMerge as StepMerge
# isort: on

# Every class above, by its name: those that implement the protocol, in the order in which they were imported.
METHODS: dict[str, type[Method]] = {method.name: method for method in Method.__subclasses__()}
