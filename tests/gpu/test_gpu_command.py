"""`make check-gpu` in small on the CPU: every part runs and reports, so that it works where a GPU is lent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import processes

ROOT = Path(__file__).parents[2]

# Stand-ins for the checkouts: functions of the names and arguments that the command calls.
GENERATE = """
import torch


def add_gumbel_noise(logits, temperature):
    return logits


def get_num_transfer_tokens(mask, steps):
    return [1] * steps


@ torch.no_grad()
def generate(model, prompt, steps=128, gen_length=128, block_length=128, temperature=0., mask_id=0):
    x = torch.full((len(prompt), gen_length), mask_id).to(model.device)
    x = torch.cat([prompt, x], dim=1)
    for _ in get_num_transfer_tokens(x == mask_id, steps):
        tokens = add_gumbel_noise(model(x).logits, temperature).argmax(-1)
    return torch.where(x == mask_id, tokens, x)
"""
TRAINER = """
class DiffuGRPOTrainer:
    def compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        logps = self._get_per_token_logps(model, ids, inputs["mask_seeds"])
        logps = logps[:, inputs["prompt_ids"].shape[1] :]
        return -(logps * inputs["advantages"][:, None] * inputs["completion_mask"]).sum()

    def _get_per_token_logps(self, model, ids, seeds):
        masked, _ = self.forward_process(ids, None, self.args.mask_id)
        logits = self.get_logits(model, masked)
        return selective_log_softmax(logits, ids)

    def get_logits(self, model, batch):
        return model(batch).logits
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "llada").mkdir()
    (folder / "llada" / "generate.py").write_text(GENERATE)
    (folder / "d1" / "diffu-grpo").mkdir(parents=True)
    (folder / "d1" / "diffu-grpo" / "diffu_grpo_trainer.py").write_text(TRAINER)
    words = ["--dry-run", "--output", str(folder / "out")]
    words += ["--llada", str(folder / "llada"), "--d1", str(folder / "d1")]
    processes.finish(processes.start(_command, words, log=folder / "log"), folder / "log")
    return folder / "out"


def _command(words: list[str]) -> int:
    """Exit status of the command, in a process that has imported most of what it needs."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    sys.argv = ["gpu.py", *words]
    return gpu.main()


@pytest.mark.long
def test_dry_run_does_every_part(report):
    whole = json.loads((report / "gpu.json").read_text())
    parts = whole["parts"]
    assert whole["faults"] == []
    assert all(holds is True for holds in parts["correctness"]["checks"].values())
    assert not [name for name, part in parts.items() if "skipped" in part]
    rollouts = [name for name in parts if name.startswith("rollout of")]
    assert len(rollouts) == 3 * 3 + 1  # three sizes, three ways; LLaDA's
    assert all(parts[name]["tokens_per_s"] > 0 for name in (*rollouts, "update", "update, d1"))
    assert parts["update"]["planned_GiB"] >= 0


@pytest.mark.long
def test_dry_run_writes_the_table(report):
    page = (report / "gpu.md").read_text()
    assert "checks hold" in page
    assert page.count("\n| ") == 1 + 2 + 3 * 3 + 1


def test_command_says_where_there_is_no_gpu(tmp_path):
    words = [sys.executable, "benchmarks/gpu.py", "--output", str(tmp_path)]
    unseen = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, env=unseen)
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
