"""Checks of declared traits: what pieces say of their derivatives, against finite differences in float64."""

from dataclasses import replace

import torch

from unmask.uniforms import Uniforms

STEP = 1e-4
UNITS, SCORES = 5, 2
ADVANTAGE_U = torch.tensor([1.5, -0.5, 0.25, -2.0, 0.0], dtype=torch.float64)
NORMALIZER = torch.tensor(3.0, dtype=torch.float64)


def random(name, shape, low, high):
    """float64 between `low` and `high`."""
    draw = Uniforms().key(name).key(torch.arange(torch.Size(shape).numel())).draw().view(shape)
    return low + (high - low) * draw


def gradient_of(loss, value):
    """d loss / d value."""
    value = value.detach().requires_grad_()
    return torch.autograd.grad(loss(value), value)[0]


def second_derivatives(gradient, at, places):
    """d gradient / d value by central differences, at some places of the flattened value: [places, *value]."""
    found = []
    for place in places:
        shift = torch.zeros(at.numel(), dtype=at.dtype).index_fill(0, torch.tensor([place]), STEP).view(at.shape)
        found.append((gradient(at + shift) - gradient(at - shift)) / (2 * STEP))
    return torch.stack(found)


def is_zero(tensor, scale):
    """Whether nothing of it is more than the noise of finite differences."""
    return float(tensor.abs().max()) <= 1e-6 * float(scale.abs().max()) + 1e-9


def off_diagonal(second, places):
    """The derivatives at other places than their own."""
    flat = second.flatten(1).clone()
    flat[torch.arange(len(places)), torch.tensor(places)] = 0
    return flat


def check_surrogate(surrogate):
    """Raise AssertionError where a trait of a surrogate is not what its loss does."""
    shape = (UNITS, SCORES)
    score, other = random("score", shape, -2, -1), random("score", shape, -2, -1) + random("other", shape, -0.1, 0.1)
    weight = random("weight", shape, 0.5, 2)

    def loss(value, compared, advantage=ADVANTAGE_U):
        if surrogate.against is None:
            compared = None
        return surrogate(value, compared, advantage, weight, NORMALIZER)

    places = list(range(score.numel()))
    for old_is_now in (False, True):
        follows = old_is_now and surrogate.against == "old"

        def gradient(value, follows=follows):
            compared = value.detach() if follows else other
            return gradient_of(lambda leaf: loss(leaf, compared), value)

        second, first = second_derivatives(gradient, score, places), gradient(score)
        constant = is_zero(second, first)
        assert surrogate.has_constant_gradient(old_is_now=old_is_now) == constant, f"constant gradient: {constant}"
        if not old_is_now:
            elementwise = is_zero(off_diagonal(second, places), first)
            assert surrogate.elementwise == elementwise, f"elementwise: {elementwise}"

    def final(advantage, compared=other):
        return surrogate.final_advantages(score, compared, advantage, torch.mean)

    assert surrogate.centers_over_batch == (not torch.equal(final(ADVANTAGE_U), ADVANTAGE_U)), "centers over the batch"
    nothing = gradient_of(lambda leaf: loss(leaf, other, final(torch.zeros_like(ADVANTAGE_U))), score)
    assert surrogate.trains_zero_advantage == bool((nothing != 0).any()), "gradient of units without advantage"
    if surrogate.against is not None:
        moved = other + random("moved", shape, 0, 0.1)
        read = not torch.equal(loss(score, other, final(ADVANTAGE_U)), loss(score, moved, final(ADVANTAGE_U, moved)))
        assert read, f"reads {surrogate.against}"
    assert tuple(surrogate.metrics(score, other, ADVANTAGE_U)) == surrogate.metric_names, "metrics"


def check_likelihood(likelihood, batch):
    """Raise AssertionError where a trait of a likelihood is not what its scores do; `batch` has units of two rows."""
    batch = in_double(batch)

    def derivatives(at):
        return torch.autograd.functional.jacobian(lambda logp: likelihood(logp, batch).value_UK, at).flatten(0, 1)

    shape = batch.targets_RL.shape
    one, two = (derivatives(random(name, shape, -3, -1) * batch.scored_RL) for name in ("one", "two"))
    linear = is_zero(one - two, one)
    assert likelihood.linear == linear, f"linear: {linear}"
    read = (one != 0).flatten(1)
    elementwise = bool((read.sum(1) <= 1).all() and (read.sum(0) <= 1).all())
    assert likelihood.elementwise == elementwise, f"elementwise: {elementwise}"


def in_double(batch):
    """The batch with weights and advantages in float64."""
    return replace(batch, token_weight_RL=batch.token_weight_RL.double(), advantage_U=batch.advantage_U.double())


def check_term(term, batch, exactly=True):
    """Raise AssertionError where a term's derivatives are not elementwise as it declares, or are and it does not.

    Not `exactly`: it may declare less than is so, which is slower and not wrong.
    """
    batch = in_double(batch)
    logp = random("logp", batch.targets_RL.shape, -3, -1) * batch.scored_RL
    old, reference = (logp + random(name, logp.shape, -0.01, 0.01) * batch.scored_RL for name in ("old", "reference"))
    units = torch.nonzero(batch.scored_RL.flatten())[:, 0]
    places = units[:: -(-len(units) // 8)].tolist()
    normalizer = term.normalizer(batch).double().clamp(min=1)
    for old_is_now in (True, False):

        def gradient(value, old_is_now=old_is_now):
            before = value.detach() if old_is_now else old
            read = [
                known if term.reads(policy) else None for policy, known in (("old", before), ("reference", reference))
            ]
            return gradient_of(lambda leaf: term.loss(batch, leaf, *read, normalizer)[0], value)

        others = off_diagonal(second_derivatives(gradient, logp, places), places)
        elementwise = is_zero(others, gradient(logp))
        declared = term.is_elementwise(old_is_now=old_is_now)
        if declared or exactly:
            assert declared == elementwise, f"elementwise: {elementwise}"
