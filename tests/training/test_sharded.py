"""Steps on several ranks, weights whole or sharded, equal those of one process: tokens, figures, weights."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from faults.launch import torchrun_environment
from helpers.long import long_unless
from helpers.processes import finish, start
from helpers.steps import DYNAMO_WARNING, Case, run_cases, step_of
from unmask.methods import METHODS

PLAIN = {"method": {"name": "dispo", "base": {"name": "diffu-grpo", "beta": 0.0}}}  # pays no divergence
IN_PARTS = {"train": {"micro_batch": 5}}
EXACT = {
    **{name: Case(document={"method": {"name": name}}) for name in METHODS},
    "in parts": Case(document={"method": {"name": "rspo"}} | IN_PARTS, evaluated=True),
    "one group has signal": Case(document=PLAIN | IN_PARTS, rewarded="first"),
    "no group has signal": Case(document=PLAIN, rewarded="none"),
    "ranks end apart": Case(
        document={
            "method": {"name": "spg"},
            "rollout": {"unmasking": {"name": "threshold"}, "batch": 1, "num_generations": 3},
        }
    ),
    "different lengths": Case(
        document={
            "model": "embedded:arithmetic",
            "task": {"name": "arithmetic", "terms": 3, "max_number": 5},
            "rollout": {"steps": 8},
        },
        rewarded="texts",
    ),
    "recomputed": Case(document={"train": {"gradient_checkpointing": True}}),
    "compiled": Case(document={"train": {"torch_compile": True}}),
    "compiled and recomputed": Case(document={"train": {"torch_compile": True, "gradient_checkpointing": True}}),
    "tied": Case(tied=True, rewarded="texts"),
    "reference moves": Case(document={"method": {"name": "coupled-grpo"}, "train": {"ref_model_sync_steps": 1}}),
    "shuffled": Case(document={"train": {"shuffle_rewards": True}}),
    "one prompt": Case(document={"method": {"name": "mdpo"}, "rollout": {"prompts": 1}}, rewarded="texts"),
    "copies": Case(document={"method": {"name": "lfpo"}} | IN_PARTS),
}
ROUNDED = {  # float32 and less: the same tokens, weights to rounding
    "adapters": Case(document={"train": {"lora_rank": 2}}, dtype="float32"),
    "bf16": Case(document={"train": {"precision": "bf16"}}, dtype="float32", rewarded="texts"),
}
TOGETHER = {"copies": {4: 2, 1: 1}}  # how many hold the weights together, where it is not all of the ranks
WHOLE = ("diffu-grpo", "lfpo", "in parts", "shuffled", "different lengths", "one prompt")  # also with whole weights


@dataclass(frozen=True)
class Run:
    """A case on so many ranks, of which `together` hold the weights; 0: each of them all."""

    ranks: int
    name: str
    together: int

    def __str__(self) -> str:
        held = f"{self.ranks // self.together} x {self.together} sharded" if self.together else "whole"
        return f"{self.name}, {self.ranks} ranks, {held}"


RUNS = [Run(ranks, name, TOGETHER.get(name, {}).get(ranks, ranks)) for ranks in (1, 2, 4) for name in EXACT]
RUNS += [Run(ranks, name, 0) for ranks in (2, 4) for name in WHOLE]
PLACEMENTS = {(ranks, 0): "whole on every rank" for ranks in (2, 4)} | {
    (1, 1): "split over 1 rank, 1 copy",
    (2, 2): "split over 2 ranks, 1 copy",
    (4, 4): "split over 4 ranks, 1 copy",
    (4, 2): "split over 2 ranks, 2 copies",
}
ADAPTERS, BF16 = Run(2, "adapters", 0), Run(2, "bf16", 2)
# Cases of the default suite; `make long` runs the others.
SHORT = {
    1: set(),
    2: {"diffu-grpo", "rspo", "lfpo", "in parts", "one group has signal", "no group has signal", "ranks end apart"}
    | {"different lengths", "tied", "copies"},
    4: {"in parts", "one group has signal", "no group has signal", "copies"},
}
KEPT = {run for run in RUNS if run.name in SHORT[run.ranks]}
on_ranks = pytest.mark.parametrize("run", long_unless(KEPT, RUNS), ids=str)


@pytest.fixture(scope="module")
def seen(tmp_path_factory, request):
    """By run, what the ranks saw; one launch for each number of ranks."""
    items = [item for item in request.session.items if item.module is request.module]
    wanted = {item.callspec.params["run"] for item in items if hasattr(item, "callspec")} | {ADAPTERS, BF16}
    found = {}
    for count in sorted({run.ranks for run in wanted}):
        runs = [run for run in [*RUNS, ADAPTERS, BF16] if run in wanted and run.ranks == count]
        cases = [(str(run), (EXACT | ROUNDED)[run.name], run.together) for run in runs]
        place = tmp_path_factory.mktemp(f"ranks_{count}")
        log = place / "log"
        environments = torchrun_environment(count)
        for rank in [start(run_cases, cases, place, log=log, environment=each) for each in environments]:
            finish(rank, log)
        weights = load_file(place / "weights.safetensors")
        rows = json.loads((place / "seen.json").read_text())
        found |= {run: rows[str(run)] | {"weights": weights[str(run)]} for run in runs}
    return found


@pytest.fixture(scope="module")
def alone():
    """The same step in this process, each once."""
    made = {}

    def step(name):
        if name not in made:
            made[name] = step_of(EXACT[name], 0)
        return made[name]

    return step


@pytest.mark.filterwarnings(f"ignore:{DYNAMO_WARNING}")
@on_ranks
def test_step_on_ranks_equals_one_process(run, seen, alone):
    one, many = alone(run.name), seen[run]
    assert many["tokens"] == [list(row) for row in sorted(one.tokens)]
    torch.testing.assert_close(many["weights"], one.weights, rtol=0, atol=1e-12)
    for row in many["metrics"]:
        metrics = {name: value for name, value in row.items() if name != "idle_forwards"}
        assert metrics == pytest.approx(one.metrics, rel=1e-5, abs=1e-7)
    assert many["evaluation"] == [one.evaluation] * run.ranks


@on_ranks
def test_nothing_crosses_in_rollouts_and_updates_agree_on_what_crosses(run, seen):
    counts = seen[run]["crossed"]
    assert all(sum(rank["rollout"]) == 0 for rank in counts)
    assert len({json.dumps([rank["gathers"], rank["scatters"]]) for rank in counts}) == 1
    updated = run.name != "no group has signal"
    assert all(bool(sum(rank["scatters"])) == (updated and run.together > 1) for rank in counts)


@on_ranks
def test_nothing_stays_gathered(run, seen):
    assert seen[run]["held"] == [[run.together > 0, 0, PLACEMENTS[run.ranks, run.together]]] * run.ranks


def test_step_of_adapters_on_ranks_equals_one_process_to_rounding(seen):
    one, many = step_of(ROUNDED["adapters"], 0), seen[ADAPTERS]
    assert many["tokens"] == [list(row) for row in sorted(one.tokens)]
    torch.testing.assert_close(many["weights"], one.weights, rtol=0, atol=1e-5)
    assert many["metrics"][0]["grad_norm"] == pytest.approx(one.metrics["grad_norm"], rel=1e-4)


def test_sharded_weights_in_bf16_sample_as_a_network_cast_to_it(seen):
    """And float64 uniforms are left alone: a root that casts its inputs changes 40 % of the tokens."""
    cast = Case(document={"train": {"num_iterations": 1}}, dtype="bfloat16", rewarded="texts")
    assert seen[BF16]["tokens"] == [list(row) for row in sorted(step_of(cast, 0).tokens)]
    assert seen[BF16]["weights"].dtype == torch.float32


def test_ranks_make_as_many_forwards_as_they_need(seen):
    """Else the cases would not show what they are for."""
    rollouts = [rank["forwards"][0] for rank in seen[Run(2, "ranks end apart", 2)]["crossed"]]
    assert len(set(rollouts)) == 2
    assert all(metrics["idle_forwards"] == 0.75 for metrics in seen[Run(4, "one group has signal", 4)]["metrics"])
    assert not any("idle_forwards" in metrics for metrics in seen[Run(4, "in parts", 0)]["metrics"])
