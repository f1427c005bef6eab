"""The published methods, one file each."""

from unmask.methods.coupled_grpo import CoupledGRPO
from unmask.methods.d2 import StepMerge
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.dispo import DiSPO
from unmask.methods.espo import ESPO
from unmask.methods.gdpo import GDPO
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.lfpo import LFPO
from unmask.methods.mdpo import MDPO
from unmask.methods.rspo import RSPO
from unmask.methods.spg import SPG
from unmask.methods.tracerl import TraceRL
from unmask.methods.unigrpo import UniGRPO
from unmask.methods.vrpo import VRPO
from unmask.methods.wd1 import WD1

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
    "StepMerge",
    "TraceRL",
    "UniGRPO",
]

METHODS = {
    method.name: method
    for method in (
        DiffuGRPO,
        WD1,
        UniGRPO,
        CoupledGRPO,
        SPG,
        GDPO,
        ESPO,
        RSPO,
        LFPO,
        JustGRPO,
        VRPO,
        MDPO,
        DiSPO,
        TraceRL,
        StepMerge,
    )
}
