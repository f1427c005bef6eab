"""What every test stands on: one thread, the shape checks, the reference numbers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy
import json
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Checks the annotated shapes of these modules at run time, in tests only.
install_import_hook(
    [
        "unmask.types",
        "unmask.denoisers.base",
        "unmask.objective.advantages",
        "unmask.objective.masks",
        "unmask.objective.likelihood",
        "unmask.objective.losses",
        "unmask.objective.divergences",
        "unmask.rewards.scoring",
        "unmask.objective.term",
    ],
    "beartype.beartype",
)

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llada_tiny():
    from unmask.denoisers.loading import load_denoiser

    return load_denoiser(str(REFERENCE / "models" / "llada-tiny")).eval()


@pytest.fixture(scope="session")
def commands():
    """Runs commands of `unmask` until torch would be imported."""
    from helpers.before_torch import Commands

    with Commands() as commands:
        yield commands


@pytest.fixture(scope="session")
def exact_llada_tiny(llada_tiny):
    """The same in float64: what published float32 numbers are off by is then their own rounding."""
    return copy.deepcopy(llada_tiny).double()


def reference_cases(name: str) -> list[dict]:
    """The cases of a reference file, each with its scalars and (under "tensors") its arrays."""
    from safetensors.torch import load_file

    document = json.loads((REFERENCE / f"{name}.json").read_text())
    tensors = load_file(REFERENCE / f"{name}.safetensors")
    for case in document["cases"]:
        prefix = case["name"] + "."
        case["tensors"] = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        case["shared"] = {key: value for key, value in tensors.items() if "." not in key}
        case["document"] = document
    return document["cases"]
