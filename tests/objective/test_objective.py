"""Objective: a training loop of one's own, with an optimizer of one's own, has the trainer's gradients bit for bit."""

import pytest
import torch

from helpers.long import long_unless
from unmask.data.examples import Examples, guess_texts, rollout_texts
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.denoisers.tiny import tiny_denoiser
from unmask.methods import LFPO, METHODS, RSPO, VRPO, DiffuGRPO, JustGRPO
from unmask.methods.describe import EOS, MASK, dry_rewards, dry_rollout
from unmask.objective.objective import MetricSums, Objective, frozen_copy
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import LeftToRight, LowConfidence
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import Sudoku
from unmask.training.build import build_trainer
from unmask.uniforms import Uniforms

MODEL, GROUPS, UPDATES, RATE = "embedded:sudoku", (2, 4), 2, 1e-4


def settings_of(method) -> dict:
    """What sampler the method wants."""
    if method == "just-grpo":
        return {"steps": 16, "unmasking": LeftToRight()}
    return {"steps": 4, "unmasking": LowConfidence()}


class Gradients:
    """Copies of a model's gradients before each step of an optimizer."""

    def __init__(self, denoiser, optimizer):
        self.steps, self._denoiser = [], denoiser
        optimizer.register_step_pre_hook(lambda *_: self.steps.append(self._now()))

    def _now(self):
        named = self._denoiser.named_parameters()
        return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def trainers_gradients(method, micro_batch):
    """Of the first training step, update by update, and the prompts that it drew."""
    sampler = settings_of(method)
    document = {
        "method": {"name": method},
        "rollout": {
            "prompts": GROUPS[0],
            "num_generations": GROUPS[1],
            "steps": sampler["steps"],
            "temperature": 1.0,
            "unmasking": {"name": sampler["unmasking"].name},
        },
        "train": {
            "examples": 32,
            "threads": 1,
            "num_iterations": UPDATES,
            "micro_batch": micro_batch,
            # Gradients as they are, each step by the same rate.
            "max_grad_norm": 1e9,
            "learning_rate": RATE,
            "warmup_steps": 0,
        },
        "evaluation": {"examples": 4, "examples_during": 4},
    }
    trainer = build_trainer(build(Recipe, document))
    gradients = Gradients(trainer.objective.denoiser, trainer.updater.optimizer)
    metrics, _ = trainer.step(0)
    group = trainer.updater.optimizer.param_groups[0]
    adam = {name: group[name] for name in ("lr", "betas", "weight_decay")}
    return gradients.steps, trainer._prompts_of(0), adam, metrics


def rewards_of(term, rollout, examples, tokenizer):
    """The task's rewards as the term's advantage reads them: [P, G], or [P, G, Z] of recorded guesses."""
    if term.record is None:
        texts = [[text] for text in rollout_texts(tokenizer, rollout, examples)]
    else:
        texts = guess_texts(tokenizer, rollout, examples)
    indices = [index for index, row in zip(rollout.prompt_N.tolist(), texts, strict=True) for _ in row]
    prompts, flat = [examples.items[index].prompt for index in indices], [text for row in texts for text in row]
    rewards = torch.tensor(Sudoku().rewards(prompts, flat, **examples.columns(indices, 1)))
    return rewards.view(*GROUPS) if term.record is None else rewards.view(*GROUPS, -1)


@pytest.mark.parametrize("method", long_unless({"dispo", "mdpo", "rspo", "spg", "vrpo"}, METHODS))
@pytest.mark.parametrize("micro_batch", long_unless({3}, [0, 3]))
def test_objective_gradients_are_the_trainers_in_a_loop_of_ones_own(method, micro_batch):
    expected, indices, adam, metrics = trainers_gradients(method, micro_batch)
    tokenizer, denoiser = load_tokenizer(MODEL), load_denoiser(MODEL)
    items = Sudoku().examples("train", 32, 0)
    length = Sudoku().max_new_tokens
    examples = Examples.of(items, tokenizer, denoiser.eos_id, denoiser.max_length - length)
    sampler = Sampler(
        max_new_tokens=length, block_length=length, temperature=1.0, stop_at_end=False, **settings_of(method)
    )
    objective = Objective(
        terms=METHODS[method]().terms(denoiser.eos_id),
        denoiser=denoiser,
        reference=frozen_copy(denoiser),
        old=frozen_copy(denoiser),
        micro_batch=micro_batch,
    )
    optimizer = torch.optim.AdamW(denoiser.parameters(), **adam)
    gradients, sums = Gradients(denoiser, optimizer), MetricSums()
    uniforms = Uniforms().key(0).key("iteration", 0)
    prompts = examples.prompts(indices, GROUPS[1])
    rollout = sampler(denoiser.eval(), prompts, uniforms, record=objective.record, group_size=GROUPS[1])
    rewards = [rewards_of(term, rollout, examples, tokenizer) for term in objective.terms]
    for update in objective.prepare(rollout, rewards, uniforms, UPDATES):
        for loss in objective.losses(update, sums=sums):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert len(gradients.steps) == len(expected) == UPDATES
    for ours, theirs in zip(gradients.steps, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert any(bool(gradient.any()) for gradient in ours.values())
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert sums.values["loss"].item() / UPDATES == pytest.approx(metrics["loss"], rel=1e-5, abs=1e-7)


# ---- one update of a small denoiser ----


def prepared(method, **settings):
    """An objective on a small denoiser, and its update batches of a dry rollout for one update."""
    denoiser = tiny_denoiser(
        vocabulary=64, mask_id=MASK, eos_id=EOS, hidden=16, layers=1, heads=2, max_length=64, seed=0
    )
    objective = Objective(terms=method.terms(EOS), denoiser=denoiser, reference=frozen_copy(denoiser), **settings)
    rollout = dry_rollout(objective.record)
    rewards = [dry_rewards(term, rollout) for term in objective.terms]
    (update,) = objective.prepare(rollout, rewards, Uniforms())
    return objective, update


def test_losses_makes_a_forward_only_when_its_loss_is_asked_for():
    objective, update = prepared(JustGRPO(), micro_batch=2)
    forwards = []
    objective.denoiser.register_forward_hook(lambda *_: forwards.append(1))
    losses = objective.losses(update)
    assert len(forwards) == 0
    for count, loss in enumerate(losses, start=1):
        assert len(forwards) == count
        loss.backward()
    assert len(forwards) == -(-len(update[0].batch.inputs_FL) // 2)


def test_losses_micro_batch_overrides_the_objectives_and_leaves_the_sum():
    objective, update = prepared(DiffuGRPO(), micro_batch=2)
    whole, parts = list(objective.losses(update, micro_batch=0)), list(objective.losses(update))
    assert len(whole) == 1 < len(parts)
    torch.testing.assert_close(torch.stack(parts).sum(), whole[0])


def test_losses_sums_are_detached_and_complete_after_the_last_loss():
    objective, update = prepared(DiffuGRPO(), micro_batch=2)
    sums = MetricSums()
    losses = list(objective.losses(update, sums=sums))
    assert {"loss", "count", "approx_kl", "clip_ratio", "kl"} == sums.values.keys()
    assert not any(value.requires_grad for value in sums.values.values())
    assert sums.values["loss"] == sum(loss.detach() for loss in losses)
    assert sums.values["count"] == update[0].batch.scored_RL.sum()


def test_prepare_leaves_out_terms_without_a_gradient():
    objective, _ = prepared(DiffuGRPO(beta=0.0))
    rollout = dry_rollout(objective.record)
    equal = torch.ones(1, rollout.group_size)
    assert objective.prepare(rollout, [equal], Uniforms(), updates=2) == [[], []]
    assert list(objective.losses([])) == []


@pytest.mark.parametrize(
    ("method", "updates", "missing"), [(RSPO(), 1, "reference policy"), (VRPO(), 1, "reference"), (LFPO(), 2, "as old")]
)
def test_prepare_refuses_a_frozen_policy_that_is_missing(method, updates, missing):
    objective, _ = prepared(DiffuGRPO())
    bare = Objective(terms=method.terms(EOS), denoiser=objective.denoiser)
    rollout = dry_rollout(bare.record)
    with pytest.raises(ValueError, match=missing):
        bare.prepare(rollout, [dry_rewards(term, rollout) for term in bare.terms], Uniforms(), updates)
