"""Steps on several ranks, weights whole or sharded, equal those of one process: tokens, figures, weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from faults.launch import torchrun_environment
from helpers.long import long_unless
from helpers.processes import finish, start
from helpers.steps import Case, run_cases, step_of
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
SHARDED = {  # by number of ranks, cases and how many hold the weights together
    2: {**dict.fromkeys(EXACT, 2), "bf16": 2},
    4: {**dict.fromkeys(("in parts", "one group has signal", "no group has signal", "one prompt"), 4), "copies": 2},
}
WHOLE = {
    2: ("diffu-grpo", "lfpo", "in parts", "shuffled", "different lengths", "adapters"),
    4: ("in parts", "one prompt"),
}
# Cases of the default suite; `make long` runs the others.
SHORT = {"diffu-grpo", "rspo", "lfpo"}
LONG = {*METHODS, "recomputed", "reference moves", "one prompt", "shuffled"} - SHORT


@pytest.fixture(scope="module")
def seen(tmp_path_factory, request):
    """By number of ranks and name of the case, what the ranks saw; one launch for each number."""
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    found = {}
    for count, sizes in SHARDED.items():
        chosen = {name: size for name, size in sizes.items() if name not in LONG or name in wanted}
        cases = [(name, (EXACT | ROUNDED)[name], size) for name, size in chosen.items()]
        whole = [name for name in WHOLE[count] if name in chosen or name in ROUNDED]
        cases += [(f"{name}, whole", (EXACT | ROUNDED)[name], 0) for name in whole]
        place = tmp_path_factory.mktemp(f"ranks_{count}")
        log = place / "log"
        environments = torchrun_environment(count)
        for rank in [start(run_cases, cases, place, log=log, environment=each) for each in environments]:
            finish(rank, log)
        weights = load_file(place / "weights.safetensors")
        rows = json.loads((place / "seen.json").read_text())
        found[count] = {name: row | {"weights": weights[name]} for name, row in rows.items()}
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


@pytest.mark.parametrize("name", long_unless({*EXACT} - LONG, EXACT))
def test_step_on_ranks_equals_one_process(name, seen, alone):
    one = alone(name)
    for count, held in [(2, name), (4, name), (2, f"{name}, whole"), (4, f"{name}, whole")]:
        if held not in seen[count]:
            continue
        many = seen[count][held]
        assert many["tokens"] == [list(row) for row in sorted(one.tokens)], (count, held)
        torch.testing.assert_close(many["weights"], one.weights, rtol=0, atol=1e-12, msg=f"{count} {held}")
        for row in many["metrics"]:
            metrics = {name: value for name, value in row.items() if name != "idle_forwards"}
            assert metrics == pytest.approx(one.metrics, rel=1e-5, abs=1e-7), (count, held)
        assert many["evaluation"] == [one.evaluation] * count


def test_nothing_crosses_in_rollouts_and_updates_agree_on_what_crosses(seen):
    for count, cases in seen.items():
        for name, case in cases.items():
            counts = case["crossed"]
            assert all(sum(rank["rollout"]) == 0 for rank in counts), (count, name)
            assert len({json.dumps([rank["gathers"], rank["scatters"]]) for rank in counts}) == 1, (count, name)
            updated = name.partition(",")[0] != "no group has signal"
            is_sharded = "whole" not in name
            assert all(bool(sum(rank["scatters"])) == (updated and is_sharded) for rank in counts), name


def test_step_of_adapters_on_ranks_equals_one_process_to_rounding(seen):
    one, many = step_of(ROUNDED["adapters"], 0), seen[2]["adapters, whole"]
    assert many["tokens"] == [list(row) for row in sorted(one.tokens)]
    torch.testing.assert_close(many["weights"], one.weights, rtol=0, atol=1e-5)
    assert many["metrics"][0]["grad_norm"] == pytest.approx(one.metrics["grad_norm"], rel=1e-4)


def test_sharded_weights_in_bf16_sample_as_a_network_cast_to_it(seen):
    """And float64 uniforms are left alone: a root that casts its inputs changes 40 % of the tokens."""
    cast = Case(document={"train": {"num_iterations": 1}}, dtype="bfloat16", rewarded="texts")
    assert seen[2]["bf16"]["tokens"] == [list(row) for row in sorted(step_of(cast, 0).tokens)]
    assert seen[2]["bf16"]["weights"].dtype == torch.float32


def test_nothing_stays_gathered(seen):
    for count, cases in seen.items():
        for name, case in cases.items():
            assert case["held"] == [["whole" not in name, 0]] * count, (count, name)


def test_ranks_make_as_many_forwards_as_they_need(seen):
    """Else the cases would not show what they are for."""
    rollouts = [rank["forwards"][0] for rank in seen[2]["ranks end apart"]["crossed"]]
    assert len(set(rollouts)) == 2
    assert all(metrics["idle_forwards"] == 0.75 for metrics in seen[4]["one group has signal"]["metrics"])
    assert not any("idle_forwards" in metrics for metrics in seen[4]["in parts, whole"]["metrics"])
