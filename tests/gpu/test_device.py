"""A GPU gives the CPU's tokens and gradients, never waits within a block, and trains (`make check-gpu`).

The same checks run with the CPU as the device, where that is cheap, so that they cannot rot without a GPU at hand.
"""

import checks
import pytest
import torch

from helpers import processes

pytestmark = pytest.mark.filterwarnings("default")  # of compilers and drivers: not ours to refuse on any machine

GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: not checked")],
)


@pytest.mark.parametrize("device", [GPU, "cpu"])
@pytest.mark.parametrize("name", checks.CHEAP)
def test_check_holds_on_device(name, device):
    assert checks.CHEAP[name](device)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("name", checks.COSTLY)
def test_costly_check_holds_on_device(name, device):
    assert checks.COSTLY[name](device)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_runs_on_device(device, precision, tmp_path):
    processes.finish(processes.start(_train, device, precision, log=tmp_path / "log"), tmp_path / "log")


@pytest.mark.long
def test_training_runs_check_works_on_cpu(tmp_path):
    log = tmp_path / "log"
    processes.finish(processes.start(_train, "cpu", "fp32", ("diffu-grpo",), log=log), log)


def _train(*arguments) -> int:
    """Exit status of a training check, which needs a process of its own."""
    return 0 if checks.training_runs(*arguments) else 1
