"""How weights are shared: sizes by part beside a table made by hand, the choice of a layout, messages, 4 bits."""

import json

import pytest
import torch

from unmask.plan.estimate import advice, make_plan
from unmask.plan.gpus import Network
from unmask.plan.layout import (
    Layout,
    choose_layout,
    frozen_bytes,
    gathered_bytes,
    gradients_bytes,
    layouts,
    masters_bytes,
    moments_bytes,
    working_bytes,
)
from unmask.plan.memory import saved_bytes
from unmask.plan.networks import four_bit_bytes, size_of
from unmask.plan.traffic import Transfer
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build
from unmask.settings.recipe_files import read_recipe

GIB = 2**30
LLADA = "GSAI-ML/LLaDA-8B-Instruct"
ONE, EIGHT, HYBRID, FLAT = Layout(), *(Layout(ranks=ranks, shard=shard) for ranks, shard in ((8, 8), (64, 8), (64, 64)))


def settings(name, **flags) -> PlanSettings:
    return build(PlanSettings, read_recipe(name) | flags)


# ---- LLaDA-8B, all weights: GiB on a GPU, reckoned by hand from its 8.02 billion weights ----


@pytest.mark.parametrize(("layout", "state"), [(ONE, 119.4), (EIGHT, 14.9), (HYBRID, 14.9), (FLAT, 1.9)])
def test_bytes_of_masters_moments_and_gradients_of_llada_8b(layout, state):
    weights = size_of(LLADA, "fp32", 0).groups
    parts = masters_bytes(weights, layout) + moments_bytes(weights, layout) + gradients_bytes(weights, layout)
    assert parts / GIB == pytest.approx(state, abs=0.05)


def test_bytes_gathered_and_frozen_of_llada_8b():
    weights = size_of(LLADA, "fp32", 0).groups
    assert gathered_bytes(weights, torch.bfloat16) / GIB == pytest.approx(14.9, abs=0.05)
    assert working_bytes(weights, torch.bfloat16) / GIB == pytest.approx(1.93 + 0.81, abs=0.01)  # root, two layers
    assert frozen_bytes(weights, EIGHT) / GIB == pytest.approx(3.73, abs=0.01)


def test_saved_bytes_of_llada_8b_are_pinned_in_powers_of_two():
    """A rank's 24 MiB of a matrix of the MLP take 32, its 247 of embedding and head 256; attention's 8 stay 8."""
    size, settings_of_all = size_of(LLADA, "fp32", 0), settings("llada8b-mdpo")
    by_hand = 8 * 2 * (32 * (4 * 8 + 3 * 32) + 2 * 256) * 2**20
    assert saved_bytes(settings_of_all, size, EIGHT) == pytest.approx(by_hand, rel=1e-3)


@pytest.fixture(scope="module")
def mdpo():
    """MDPO's published settings: 6 x 768 tokens at a time, 16 completions a GPU, with a reference."""
    return make_plan(settings("llada8b-mdpo", gpus="8x80GB"))


def test_plan_of_llada_8b_on_eight_gpus_is_as_reckoned_by_hand(mdpo):
    memory = mdpo.memory
    moments = {name: size / GIB for name, size in memory.bytes_by_moment.items()}
    gradients, reference = memory.gradients / GIB, memory.reference / GIB
    assert (mdpo.layout.shard, mdpo.fits) == (8, True)
    # By hand gradients are freed before a rollout, and the frozen reference is counted where it answers.
    assert moments["rollout"] - gradients - reference == pytest.approx(27.2, rel=0.02)
    assert moments["frozen answers"] - gradients == pytest.approx(31.0, rel=0.05)
    assert moments["update"] == pytest.approx(45, rel=0.07)  # by hand its largest buffers are there at once
    assert moments["optimizer step"] - reference == pytest.approx(18.6, rel=0.01)


def test_a_micro_batch_moves_each_layer_twice_the_root_and_the_gradients_once(mdpo):
    whole, layers, gradients = mdpo.transfers
    passes, weights, root = -(-mdpo.work.terms[0].forwards // 6), 8_015_581_184, 2 * 126464 * 4096 + 4096
    assert whole.size == 2 * 2 * weights  # for the rollout, and of the reference
    assert (layers.size, gradients.size) == (passes * 2 * (2 * weights - root), passes * 4 * weights)
    assert gradients.messages == passes * 33


def test_hybrid_plan_adds_the_sum_between_groups(monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    plan = make_plan(settings("llada8b-mdpo", gpus="64x80GB", rollout={"prompts": 64, "num_generations": 2}))
    *within, among = plan.transfers
    assert {transfer.ranks for transfer in within} == {8}
    assert (among.ranks, among.members, among.size) == (8, 1, 4 * 8_015_581_184 // 8)


# ---- which layout ----


def test_layouts_worth_trying_are_whole_within_machines_and_over_all():
    assert [each.shard for each in layouts(64, 8)] == [1, 8, 64]
    assert [each.shard for each in layouts(64, 8, nodes_replicate=False)] == [1, 64]
    assert [each.shard for each in layouts(8, 8)] == [1, 8]
    assert [each.shard for each in layouts(12, 8)] == [1, 12]
    assert [each.shard for each in layouts(1, 8)] == [1]


@pytest.mark.parametrize(("usable", "shard"), [(100, 1), (99, 8), (12, 64), (1, 64)])
def test_choose_layout_takes_the_first_that_fits(usable, shard):
    chosen = choose_layout(layouts(64, 8), lambda layout: 100 / layout.shard, usable)
    assert chosen == Layout(ranks=64, shard=shard)


def test_plan_of_adapters_keeps_them_whole(monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    plan = make_plan(settings("llada8b-dispo", gpus="8x80GB"))
    assert (plan.layout.shard, len(plan.transfers)) == (1, 1)
    assert plan.transfers[0].size == plan.settings.train.num_iterations * plan.size.trained_bytes


@pytest.mark.parametrize(
    "name",
    ["llada8b-mdpo", "llada8b-tracerl", "llada8b-dispo-full", "gsm8k-llada8b-mdpo-full", "gsm8k-llada2mini-tracerl"],
)
def test_recipes_of_all_weights_fit_eight_gpus_sharded(name, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 5 * GIB)  # traced elsewhere, and slow
    plan = make_plan(settings(name, gpus="8x80GB"))
    assert (plan.layout.shard, plan.settings.train.lora_rank, plan.fits) == (8, 0, True)
    assert not make_plan(settings(name, gpus="1x80GB")).fits


def test_plan_of_experts_that_cannot_be_gathered_says_how_much_they_take(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 0)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen3_moe",
                "is_causal": False,
                "hidden_size": 4096,
                "intermediate_size": 9216,
                "moe_intermediate_size": 1024,
                "num_hidden_layers": 31,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "vocab_size": 157184,
                "max_position_embeddings": 32768,
            }
        )
    )
    plan = make_plan(
        settings("llada8b-tracerl", model=str(tmp_path), gpus="64x80GB", rollout={"prompts": 64, "num_generations": 8})
    )
    assert not plan.fits
    (line,) = advice(plan)
    assert "191 GiB on every GPU" in line
    assert "expert parallelism would split 186 GiB of them" in line


# ---- messages ----


def test_transfer_goes_as_fast_as_its_slowest_stretch():
    network = Network(link=100e9, between=10e9)
    inside = Transfer(name="", messages=0, size=80 * 10**9, ranks=8, members=8)
    across = Transfer(name="", messages=0, size=80 * 10**9, ranks=16, members=8)
    among = Transfer(name="", messages=0, size=80 * 10**9, ranks=2, members=1, rounds=2)
    assert inside.seconds(network) == pytest.approx(0.7)
    assert across.seconds(network) == pytest.approx(75 / 80)  # eight adapters of 10 GB/s
    assert among.seconds(network) == pytest.approx(8)
    assert Transfer(name="", messages=100, size=0, ranks=2, members=2).seconds(network) == pytest.approx(0.005)


# ---- 4 bits ----


def test_four_bit_bytes_are_those_of_bitsandbytes():
    assert four_bit_bytes(512 * 1024) == 262_144 + 8_192 + 128 + (16 + 256 + 1) * 4  # counted on its tensors, 0.50


def test_size_of_llada_8b_in_four_bits():
    size = size_of(LLADA, "bf16", 128, four_bit=True)
    layers, rest = 32 * (4 * 4096**2 + 3 * 4096 * 12288), 2 * 126464 * 4096
    base = size.weight_bytes - size.trained_bytes
    assert base == pytest.approx(layers * 4.127 / 8 + rest * 2, rel=1e-3)  # bits a weight, of QLoRA 2305.14314
    assert size.dequantized == 4096 * 12288


def test_plan_of_four_bits_fits_where_half_precision_does_not(monkeypatch):
    monkeypatch.setattr("unmask.plan.memory.peak_bytes", lambda *arguments: 5 * GIB)
    train = read_recipe("llada8b-dispo")["train"] | {"gradient_checkpointing": True}
    rollout = read_recipe("llada8b-dispo")["rollout"] | {"prompts": 4}
    half, four = (
        make_plan(settings("llada8b-dispo", gpus="1x24GB", train=train | {"four_bit": bits}, rollout=rollout))
        for bits in (False, True)
    )
    assert (half.fits, four.fits) == (False, True)
