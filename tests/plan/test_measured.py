"""Plans against measurements: FLOPs as PyTorch counts them, bytes as its allocator reports them, of a real step."""

import pytest

from helpers.forwards import count_forwards
from helpers.long import long_unless
from helpers.small_run import SmallRun, settings_of
from rehearsal.measured import flops, peak

METHODS = {
    "diffu-grpo": {"name": "diffu-grpo"},
    "mdpo": {"name": "mdpo", "steps": 2},
    "spg": {"name": "spg"},
    "dispo": {"name": "dispo"},
    "just-grpo": {"name": "just-grpo", "fraction": 0.5},
    "vrpo": {"name": "vrpo"},
    "rspo": {"name": "rspo"},
}
ADAPTERS = {"lora_rank": 8, "gradient_checkpointing": True}
WIDE_ADAPTERS = {"lora_rank": 32}


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("diffu-grpo", {"num_iterations": 2}),
        *((name, {}) for name in list(METHODS)[1:]),
        ("spg", ADAPTERS),
        ("vrpo", WIDE_ADAPTERS),
    ],
    ids=[*METHODS, "spg with adapters, recomputed", "vrpo with wide adapters, which its reference leaves out"],
)
def test_plan_flops_are_those_measured(method, train, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)  # slow, and of no account here
    run = SmallRun(settings_of(tmp_path, METHODS[method], train=train, shape={"num_hidden_layers": 2}))
    planned = run.plan.flops
    assert planned.rollout == pytest.approx(flops(run.sample), rel=0.05)
    answered = flops(run.prepare)
    assert planned.trained + planned.other == pytest.approx(answered + flops(run.update), rel=0.05)


@pytest.mark.parametrize("method", ["diffu-grpo", "dispo", "mdpo"])
def test_plan_flops_of_a_model_with_blocks_of_its_own_are_those_measured(method, tmp_path, monkeypatch):
    """Prompts end within a block, so completions take one block more."""
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    shape, rollout = {"num_hidden_layers": 2, "block_length": 8}, {"prompts": 8, "steps": 8}
    run = SmallRun(settings_of(tmp_path, METHODS[method], rollout=rollout, shape=shape))
    planned = run.plan.flops
    assert planned.rollout == pytest.approx(flops(run.sample), rel=0.05)
    answered = flops(run.prepare)
    assert planned.trained + planned.other == pytest.approx(answered + flops(run.update), rel=0.05)


def sampled_forwards(run) -> int:
    """Rows of all forwards that the network makes while it samples."""
    with count_forwards(run.objective.denoiser) as shapes:
        run.sample()
    return sum(rows for rows, _ in shapes)


RULES = {
    "low_confidence": {"name": "low_confidence"},
    "threshold": {"name": "threshold", "threshold": 1.0},  # it never is so sure: a token a step
    "factor": {"name": "factor", "factor": 1e-6},
    "scheduled_threshold": {"name": "scheduled_threshold", "threshold": 1.0},
}


@pytest.mark.parametrize("prompts", [4, 9])  # of 8 completions each: in one batch, of 72 padded ones
@pytest.mark.parametrize("rule", RULES)
def test_plan_rollout_forwards_are_the_most_that_a_rule_makes(rule, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    sizes = {"prompts": prompts, "num_generations": 8, "steps": 4, "block_length": 8, "stop_at_end": False}
    rollout = sizes | {"unmasking": RULES[rule]}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=rollout, shape={"num_hidden_layers": 1}))
    assert sampled_forwards(run) == run.plan.work.rollout_forwards


CACHED = ("prefix", "dual", "prefix_delayed", "dual_delayed")


@pytest.mark.parametrize("caching", CACHED)
def test_plan_flops_of_a_rollout_with_a_cache_are_those_measured(caching, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    rollout = {"caching": caching, "steps": 8, "block_length": 8}
    method, shape = METHODS["diffu-grpo"], {"num_hidden_layers": 2}
    run = SmallRun(settings_of(tmp_path, method, rollout=rollout, shape=shape))
    assert run.plan.flops.rollout == pytest.approx(flops(run.sample), rel=0.05)
    exact = SmallRun(settings_of(tmp_path, method, rollout=rollout | {"caching": "none"}, shape=shape))
    assert run.plan.flops.rollout < 0.9 * exact.plan.flops.rollout


def test_plan_peak_of_a_rollout_with_a_cache_is_an_upper_bound(tmp_path):
    """By less than the keys and values of a layer, of which a small network has few."""
    shape = {"hidden_size": 96, "num_key_value_heads": 4}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout={"caching": "dual"}, shape=shape))
    measured, planned = peak(run.sample), run.plan.memory.rollout + run.plan.memory.records
    layer = 2 * run.plan.work.samples * run.plan.work.length * shape["hidden_size"] * 4
    assert measured <= planned < measured + layer
    plain = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], shape=shape))
    assert run.plan.memory.rollout > plain.plan.memory.rollout + 3 * layer


@pytest.mark.parametrize(("batch", "group_size"), [(5, 4), (8, 4), (37, 4), (37, 5)])
def test_plan_rollout_forwards_of_refilled_batches_are_an_upper_bound(batch, group_size, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    sizes = {"prompts": 12, "num_generations": group_size, "steps": 4, "block_length": 4, "batch": batch}
    for rule in ("low_confidence", "threshold"):
        rollout = sizes | {"unmasking": RULES[rule]}
        run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=rollout, shape={"num_hidden_layers": 1}))
        made = sampled_forwards(run)
        assert made <= run.plan.work.rollout_forwards <= 1.3 * made


@pytest.mark.parametrize("method", [{"name": "tracerl"}, {"name": "d2", "segments": 8}], ids=["tracerl", "d2"])
def test_plan_trained_forwards_are_an_upper_bound_for_adaptive_rules(method, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    rollout = {"steps": 2, "unmasking": RULES["threshold"]}
    run = SmallRun(settings_of(tmp_path, method, rollout=rollout, shape={"num_hidden_layers": 1}))
    run.sample()
    run.prepare()
    made = sum(len(update_batch.batch.inputs_FL) for (update_batch,) in run.prepared)
    assert made <= run.plan.work.trained_forwards <= 2 * made


WIDE = {"hidden_size": 96, "num_key_value_heads": 4, "vocab_size": 200}
CASES = {
    "all at once": ("diffu-grpo", {}, {}),
    "layers recomputed": ("spg", {"micro_batch": 8, "gradient_checkpointing": True}, WIDE),
    "adapters in bf16": ("dispo", {"micro_batch": 4, "lora_rank": 8, "precision": "bf16", "param_dtype": "bf16"}, {}),
}


@pytest.mark.parametrize("case", long_unless({"all at once"}, CASES))
def test_plan_peak_of_rollout_and_update_is_that_measured(case, tmp_path):
    method, train, shape = CASES[case]
    run = SmallRun(settings_of(tmp_path, METHODS[method], train=train, shape=shape))
    memory = run.plan.memory
    # Recorded states are there while it samples, as the plan's moments say; of the smallest runs they are 3 %.
    assert memory.rollout + memory.records == pytest.approx(peak(run.sample), rel=0.05)
    run.prepare()

    def backward():
        for loss in run.objective.losses(run.prepared[0]):
            loss.backward()

    planned = memory.update + (memory.gradients if memory.accumulates else 0)
    assert planned == pytest.approx(peak(backward), rel=0.05)


@pytest.mark.long
def test_plan_peak_of_a_rollout_leaves_out_what_is_scored_later(tmp_path):
    """Batches of long prompts, whose tokens are repeated for every mask and update, are made after it."""
    train, shape = {"num_iterations": 8}, {"num_hidden_layers": 2, "hidden_size": 32}
    run = SmallRun(settings_of(tmp_path, METHODS["spg"], train=train, shape=shape, prompt=200))
    assert run.plan.memory.batches > 0.05 * run.plan.memory.rollout
    assert run.plan.memory.rollout + run.plan.memory.records == pytest.approx(peak(run.sample), rel=0.05)


def test_plan_peak_of_a_rollout_whose_confidences_read_all_logits(tmp_path):
    rollout, shape = {"unmasking": {"name": "left_to_right"}}, {"vocab_size": 1280}
    train = {"precision": "bf16"}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=rollout, shape=shape, train=train))
    assert run.plan.memory.rollout + run.plan.memory.records == pytest.approx(peak(run.sample), rel=0.05)


@pytest.mark.parametrize("batch", [8, 12])  # groups of 4, which share their first step; and 12, filled up to 16
def test_plan_peak_of_a_rollout_in_batches_is_that_of_one(batch, tmp_path):
    sizes = {"prompts": 16, "batch": batch, "stop_at_end": False}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=sizes))
    assert run.plan.memory.rollout + run.plan.memory.records == pytest.approx(peak(run.sample), rel=0.05)


@pytest.mark.long
def test_plan_peak_of_a_rollout_at_another_temperature(tmp_path):
    """Scaled logits are a copy."""
    rollout, shape = {"temperature": 0.9}, {"hidden_size": 96, "num_key_value_heads": 4, "vocab_size": 1280}
    run = SmallRun(settings_of(tmp_path, METHODS["diffu-grpo"], rollout=rollout, shape=shape))
    assert run.plan.memory.rollout + run.plan.memory.records == pytest.approx(peak(run.sample), rel=0.05)


def test_plan_peak_of_a_whole_step_is_that_measured(tmp_path):
    """Everything from the weights on, with the optimizer that GPUs have."""
    settings = settings_of(tmp_path, METHODS["diffu-grpo"], train={"micro_batch": 4, "num_iterations": 2})
    made = []

    def step():
        run = SmallRun(settings)
        run.updater.optimizer.defaults["foreach"] = run.updater.optimizer.param_groups[0]["foreach"] = True
        run.sample()
        run.prepare()
        run.update()
        made.append(run)

    assert peak(step) == pytest.approx(made[0].plan.memory.peak, rel=0.05)
