"""Shares of GPUs beside training's own dealing, and what plans of uneven shares count beside what ranks really make."""

import pytest
import torch

from helpers.forwards import count_forwards
from helpers.small_run import SmallRun, settings_of
from unmask.cli.main import main
from unmask.distributed import World
from unmask.plan.estimate import make_plan
from unmask.plan.shares import Shares
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build, document_of
from unmask.settings.recipe_files import read_recipe
from unmask.training.dealing import Dealing, dealt_groups
from unmask.types import Prompts
from unmask.uniforms import Uniforms

# Prompts, completions of each, ranks. Of 13 x 5 completions one rank samples 33, in a batch filled up to 34.
UNEVEN = [(3, 4, 2), (5, 2, 3), (2, 4, 8), (3, 4, 12), (9, 8, 2), (13, 5, 2), (1, 8, 4), (16, 8, 24)]


def dealings(prompts, group_size, ranks):
    worlds = [World(device=torch.device("cpu"), rank=rank, size=ranks) for rank in range(ranks)]
    return [Dealing(world=world, groups=prompts, group_size=group_size) for world in worlds]


@pytest.mark.parametrize(("prompts", "group_size", "ranks"), [*UNEVEN, (16, 8, 64), (16, 8, 16)])
def test_shares_are_what_ranks_are_dealt(prompts, group_size, ranks):
    shares = Shares(prompts=prompts, group_size=group_size, ranks=ranks)
    sampled = [len(each.rows) for each in dealings(prompts, group_size, ranks)]
    trained = [len(groups) for groups in dealt_groups([1.0] * prompts, ranks)]
    assert (shares.most, shares.fewest) == (max(sampled), min(sampled))
    assert shares.with_more == sum(count > min(sampled) for count in sampled)
    assert (shares.groups, shares.idle) == (max(trained), trained.count(0))


@pytest.mark.parametrize(("prompts", "group_size", "ranks"), UNEVEN)
def test_shares_that_begin_alike_are_neighbours(prompts, group_size, ranks):
    dealing = dealings(prompts, group_size, ranks)[0]
    assert Shares(prompts=prompts, group_size=group_size, ranks=ranks).alike == dealing.neighbours


def dealt_forwards(run, dealing) -> int:
    """Rows of all forwards of a rank's rollout."""
    rollout, width = run.settings.rollout, run.settings.prompt_tokens
    count = rollout.prompts * rollout.num_generations
    index = torch.arange(count)
    prompts = Prompts(
        tokens_NP=torch.arange(count * width).view(count, width) % 500 + 10,
        attention_NP=torch.ones(count, width, dtype=torch.bool),
        prompt_N=index // rollout.num_generations,
        sample_N=index % rollout.num_generations,
    )
    denoiser, record = run.objective.denoiser, run.objective.record
    with count_forwards(denoiser) as shapes:
        rollout.sampler(run.settings.task)(
            denoiser, dealing.prompts(prompts), Uniforms(), record, group_size=dealing.neighbours
        )
    return sum(rows for rows, _ in shapes)


@pytest.mark.parametrize("sizes", UNEVEN[:-1])
@pytest.mark.parametrize("method", ["diffu-grpo", "dispo"])
def test_plan_rollout_forwards_of_uneven_shares_are_those_of_all_ranks(method, sizes, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    prompts, group_size, ranks = sizes
    rollout = {"prompts": prompts, "num_generations": group_size, "stop_at_end": False}
    settings = settings_of(tmp_path, {"name": method}, rollout=rollout, shape={"num_hidden_layers": 1})
    run = SmallRun(settings)
    plan = make_plan(build(PlanSettings, document_of(settings) | {"gpus": f"{ranks}x80GB"}))
    made = [dealt_forwards(run, dealing) for dealing in dealings(*sizes)]
    assert plan.totals.forwards.rollout == sum(made)
    assert plan.work.rollout_forwards == max(made)


@pytest.mark.parametrize("batch", [5, 8])
def test_plan_rollout_forwards_of_refilled_batches_on_ranks_are_an_upper_bound(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    rollout = {"prompts": 13, "num_generations": 5, "batch": batch, "stop_at_end": False}
    settings = settings_of(tmp_path, {"name": "diffu-grpo"}, rollout=rollout, shape={"num_hidden_layers": 1})
    run = SmallRun(settings)
    totals = make_plan(build(PlanSettings, document_of(settings) | {"gpus": "4x80GB"})).totals
    made = sum(dealt_forwards(run, dealing) for dealing in dealings(13, 5, 4))
    assert made <= totals.forwards.rollout <= 1.1 * made


def plan_of(gpus, **flags):
    return make_plan(build(PlanSettings, read_recipe("llada8b-mdpo") | flags | {"gpus": gpus}))


def test_plan_totals_of_a_step_are_the_same_on_any_number_of_gpus(monkeypatch):
    """16 prompts of 8 completions; on 16 and more no GPU has two of a prompt, which would share a first step."""
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    plans = [plan_of(f"{count}x80GB") for count in (1, 16, 24, 64)]
    flops = plans[0].totals.flops
    for plan in plans:
        # Masks are random, and averaged over the groups of one GPU.
        assert plan.totals.flops.trained == pytest.approx(flops.trained, rel=1e-3)
        assert plan.totals.flops.other == pytest.approx(flops.other, rel=1e-3)
        assert plan.totals.flops.rollout == pytest.approx(flops.rollout, rel=0.01)
        assert (plan.totals.forwards.trained, plan.totals.forwards.other) == (1024, 1024)
    assert [plan.totals.forwards.rollout for plan in plans] == [16_272, 16_384, 16_384, 16_384]
    assert [plan.work.at_once for plan in plans] == [128, 8, 6, 2]


def test_plan_time_is_that_of_the_gpu_with_the_most(monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    even, uneven, many = (plan_of(f"{count}x80GB").seconds for count in (16, 24, 64))
    assert uneven.trained == many.trained == even.trained  # of one group
    assert uneven.rollout == pytest.approx(even.rollout * 6 / 8, rel=0.01)
    assert many.rollout == pytest.approx(even.rollout * 2 / 8, rel=0.01)


def test_plan_of_a_cache_scores_each_group_once_again(monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    rollout, train = {"prompts": 3, "num_generations": 8, "caching": "dual"}, {"lora_rank": 8}
    cached = build(PlanSettings, read_recipe("llada8b-spg") | {"rollout": rollout, "train": train, "gpus": "2x80GB"})
    plain = build(PlanSettings, document_of(cached) | {"rollout": rollout | {"caching": "none"}})
    more = make_plan(cached).totals.forwards.other - make_plan(plain).totals.forwards.other
    assert more == 3


@pytest.mark.parametrize(
    ("gpus", "forwards", "said"),
    [
        (16, "16,384", None),
        (17, "16,384", "16 groups for 17 GPUs: 1 has nothing to train; raise rollout.prompts"),
        (64, "16,384", "16 groups for 64 GPUs: 48 have nothing to train; raise rollout.prompts"),
    ],
)
def test_print_plan_counts_what_is_sampled_and_says_who_has_nothing_to_train(gpus, forwards, said, capsys, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["plan", "llada8b-mdpo", "--gpus", f"{gpus}x80GB"]) == 0
    text = capsys.readouterr().out
    assert next(line for line in text.splitlines() if line.startswith("rollout   ")).split()[1] == forwards
    assert ("nothing to train" in text) == (said is not None)
    assert said is None or said in text.splitlines()
