"""What the launcher's environment says of this process, and what contradicts it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unmask.errors import UserError

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_HOW = "start with torchrun --nproc-per-node N -m unmask ..."
_PORTS = 1 << 16
# Numbers of processes that other launchers tell, none of whose other variables are read.
_OTHER_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_OF_ACCELERATE = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process of a launch: its rank of `size`, and its place among the `local_size` of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def read(cls, environment: Mapping[str, str], gpus: int) -> Launch:
        """What torchrun, or a hand, has put into the environment; `gpus`: how many this process sees.

        Raises UserError for what is incomplete, or says another thing than would be done: then processes would not
        find one another, and each would train alone in the same directory.
        """
        _refuse_other_launchers(environment)
        if not {"RANK", "WORLD_SIZE"} & environment.keys():
            return cls()
        if "WORLD_SIZE" not in environment:
            raise UserError(f"the environment has RANK and no WORLD_SIZE, the number of ranks: {_HOW}")
        size = _number(environment, "WORLD_SIZE")
        for name in _NEEDED if size > 1 else ("RANK",):
            if name not in environment:
                raise UserError(f"the environment has no {name}, which ranks need beside WORLD_SIZE {size}: {_HOW}")
        if size > 1:
            _check_place(environment)
        rank = _number(environment, "RANK")
        local_rank = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0
        local_size = _local_size(environment, local_rank, size)
        if not rank < size:
            raise UserError(f"RANK {rank} is none of {size} ranks (WORLD_SIZE): ranks are 0 to {size - 1}")
        if size == 1 and gpus > 1:
            raise UserError(
                f"WORLD_SIZE is 1, and {gpus} GPUs are visible, of which {gpus - 1} would be idle: "
                f"torchrun --nproc-per-node {gpus} -m unmask ..., or CUDA_VISIBLE_DEVICES=0"
            )
        if gpus and local_rank >= gpus:
            raise UserError(
                f"LOCAL_RANK {local_rank} has no GPU of its own, {gpus} are visible: "
                f"give --nproc-per-node {gpus} (srun: --gpu-bind=none, so that every rank sees them all), or "
                "CUDA_VISIBLE_DEVICES= for ranks on the CPU"
            )
        return cls(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not _is_number(text) or (name.endswith("WORLD_SIZE") and int(text) == 0):
        raise UserError(f"the environment's {name} is {text!r}, no number of ranks: {_HOW}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 8


def _check_place(environment: Mapping[str, str]) -> None:
    """Raise UserError where MASTER_ADDR and MASTER_PORT are no place at which ranks could meet."""
    host, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    if not host.strip():
        raise UserError(f"the environment's MASTER_ADDR is {host!r}, no host at which ranks could meet: {_HOW}")
    if not (_is_number(port) and 0 < int(port) < _PORTS):
        raise UserError(f"the environment's MASTER_PORT is {port!r}: give a number from 1 to {_PORTS - 1}, or {_HOW}")


def _local_size(environment: Mapping[str, str], local_rank: int, size: int) -> int:
    """Ranks of this machine; all of them where the environment does not say."""
    if "LOCAL_WORLD_SIZE" not in environment:
        return size
    local_size = _number(environment, "LOCAL_WORLD_SIZE")
    if not local_rank < local_size <= size:
        raise UserError(
            f"LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_size} of WORLD_SIZE {size} cannot be: {_HOW}"
        )
    return local_size


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for name in _OF_ACCELERATE:
        if name in environment:
            raise UserError(
                f"{name}={environment[name]} is of accelerate launch, whose settings are not read: {_HOW}; "
                "CUDA_VISIBLE_DEVICES= keeps it on the CPU"
            )
    for name in _OTHER_SIZES:
        if "WORLD_SIZE" not in environment and environment.get(name, "1") != "1":
            raise UserError(
                f"{name} is {environment[name]}, and without WORLD_SIZE each of these processes would train alone: "
                f"{_HOW}, or set {', '.join(_NEEDED)}"
            )
