"""Unmasking rules and schedules, on cases worked out by hand."""

import pytest
import torch

from helpers.by_hand import close
from unmask.sampling.schedules import SCHEDULES
from unmask.sampling.unmasking import (
    MEASURES,
    RULES,
    STATISTICS,
    Entropy,
    Factor,
    LeftToRight,
    LowConfidence,
    Observation,
    Random,
    RunningConfidence,
    Threshold,
    TopKMargin,
)
from unmask.uniforms import Uniforms


def observation_of(confidence, masked=None, *, running=None, count=1, remaining=0, uniforms=None) -> Observation:
    confidence = torch.tensor(confidence)
    return Observation(
        masked_NC=torch.ones_like(confidence).bool() if masked is None else torch.tensor(masked).bool(),
        token_NC=torch.zeros_like(confidence, dtype=torch.long),
        confidence_NC=confidence,
        running_NC=confidence if running is None else torch.tensor(running),
        position_NC=torch.arange(confidence.shape[1])[None],
        count=count,
        remaining=remaining,
        uniforms=(uniforms or Uniforms()).key(torch.arange(len(confidence))[:, None]),
    )


CONFIDENCE = [[0.2, 0.9, 0.5, 0.9], [0.7, 0.1, 0.6, 0.3]]
MASKED = [[1, 0, 1, 1], [1, 1, 1, 0]]


def test_measures_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log() + 3.0  # any shift
    tokens = torch.tensor([[1, 0], [2, 0]])
    normalizer = logits.logsumexp(1)
    close(MEASURES["probability"](logits, normalizer, tokens), [[0.3, 0.5], [0.8, 0.1]])
    close(MEASURES["margin"](logits, normalizer, tokens), [[0.2, 0.2], [0.7, 0.7]])
    entropy = -(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]) * (logits - 3.0)).sum(1)
    close(MEASURES["entropy"](logits, normalizer, tokens), torch.stack([-entropy, -entropy], dim=1))


@pytest.mark.parametrize("rule", [LowConfidence(), TopKMargin(), Entropy()], ids=lambda rule: rule.name)
def test_confidence_rules_commit_the_surest(rule):
    expected = {0: MASKED, 1: [[1, 0, 1, 0], [0, 1, 1, 0]], 2: [[1, 0, 0, 0], [0, 1, 0, 0]], 3: [[0] * 4] * 2}
    for count, after in expected.items():
        assert rule(observation_of(CONFIDENCE, MASKED, count=count)).int().tolist() == after
    assert rule(observation_of([[0.5, 0.5, 0.5]])).tolist() == [[False, True, True]]  # ties: the lower column
    assert (rule.adaptive, rule.remasks) == (False, False)


def test_rules_declare_their_traits():
    expected = {"margin": "margin", "entropy": "entropy", "left_to_right": "entropy"}
    assert all(rule().measure is MEASURES[expected.get(name, "probability")] for name, rule in RULES.items())
    assert all(RunningConfidence(confidence=name).measure is measure for name, measure in MEASURES.items())
    assert {name for name, rule in RULES.items() if rule.adaptive} == {"threshold", "scheduled_threshold", "factor"}
    assert {name for name, rule in RULES.items() if not rule.scheduled} == {"threshold", "factor"}
    assert {name for name, rule in RULES.items() if rule.remasks} == {"rcr"}


def test_left_to_right_commits_leftmost():
    assert LeftToRight()(observation_of(CONFIDENCE, MASKED)).int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert LeftToRight()(observation_of(CONFIDENCE, MASKED, count=2)).int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_random_commits_each_set_equally_often():
    after = torch.stack(
        [Random()(observation_of(CONFIDENCE, MASKED, uniforms=Uniforms().key(seed))) for seed in range(600)]
    )
    assert bool((after.sum(2) == 2).all())
    assert bool((after <= torch.tensor(MASKED).bool()).all())
    chosen = (~after & torch.tensor(MASKED).bool()).float().mean(0)
    close(chosen.sum(1), [1.0, 1.0])
    assert bool(((chosen - torch.tensor(MASKED) / 3).abs() < 0.07).all())
    assert len(after.flatten(1).unique(dim=0)) == 9  # rows draw apart


@pytest.mark.parametrize(
    ("threshold", "after"),
    [
        (0.95, [[1, 0, 1, 0], [0, 1, 1, 0]]),
        (0.6, [[1, 0, 1, 0], [0, 1, 0, 0]]),
        (0.5, [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (1.0, [[1, 0, 1, 0], [0, 1, 1, 0]]),
        (0.1, [[0] * 4, [0] * 4]),
    ],
)
def test_threshold_by_hand(threshold, after):
    assert Threshold(threshold=threshold)(observation_of(CONFIDENCE, MASKED)).int().tolist() == after
    none = torch.zeros(2, 4).int().tolist()
    assert Threshold(threshold=threshold)(observation_of(CONFIDENCE, none)).int().tolist() == none


@pytest.mark.parametrize(
    ("confidence", "after"),
    [
        ([0.1, 0.2, 0.3], [1, 1, 0]),  # the best alone
        ([0.6, 0.7, 0.1], [1, 0, 1]),  # v_2 = 0.6 < 1 - 1/3
        ([0.7, 0.7, 0.1], [0, 0, 1]),  # v_3 = 0.1 < 1 - 1/4
        ([0.7, 0.9, 0.8], [1, 0, 0]),  # v_3 = 0.7 < 3/4
        ([0.75, 0.9, 0.8], [0, 0, 0]),
        ([0.5, 0.6, 0.2], [1, 0, 1]),
    ],
)
def test_factor_by_hand(confidence, after):
    assert Factor()(observation_of([confidence])).int().tolist() == [after]


def test_factor_stops_at_the_first_misfit():
    # 1 - 2/3, 1 - 2/4, 1 - 2/5, 1 - 2/6 for ranks 1 to 4 ...: rank 2 fails, whatever follows.
    rule = Factor(factor=2.0)
    assert rule(observation_of([[0.9, 0.3, 0.3, 0.3]])).int().tolist() == [[0, 1, 1, 1]]
    assert rule(observation_of([[0.9, 0.4, 0.4, 0.3]])).int().tolist() == [[0, 0, 1, 1]]
    assert rule(observation_of([[0.9, 0.4, 0.5, 0.3]], [[1, 0, 1, 1]])).int().tolist() == [[0, 0, 0, 1]]
    falling = Factor(factor=0.9)  # thresholds 0.55 (rank 1), 0.7, 0.775, 0.82
    assert falling(observation_of([[0.9, 0.69, 0.69, 0.69]])).int().tolist() == [[0, 1, 1, 1]]
    assert Factor(factor=1e-3).factor == 1e-3
    assert Threshold(threshold=1.0).threshold == 1.0


def test_running_confidence_masks_the_least_confident_again():
    running = [[0.2, 0.9, 0.5, 0.8], [0.7, 0.1, 0.6, 0.3]]
    rule = RunningConfidence()
    assert rule(observation_of(CONFIDENCE, MASKED, running=running, remaining=2)).int().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 1],
    ]
    assert rule(observation_of(CONFIDENCE, MASKED, running=running, remaining=0)).int().tolist() == [[0] * 4] * 2
    assert rule(observation_of(CONFIDENCE, MASKED, running=running, remaining=4)).int().tolist() == [[1] * 4] * 2


def test_statistics_by_hand():
    before, now = torch.tensor([[0.2, 0.9, -torch.inf]]), torch.tensor([[0.5, 0.1, -3.0]])
    assert torch.equal(STATISTICS["latest"](before, now), now)
    assert torch.equal(STATISTICS["max"](before, now), torch.tensor([[0.5, 0.9, -3.0]]))


def test_schedules_by_hand():
    assert SCHEDULES["uniform"](7, 3) == (3, 2, 2)
    assert SCHEDULES["uniform"](2, 4) == (1, 1, 0, 0)
    assert SCHEDULES["linear"](10, 4) == (3, 2, 3, 2)  # 10 - 7, 7 - 5, 5 - 2, 2 - 0
    assert SCHEDULES["square"](8, 4) == (1, 1, 3, 3)  # 8, 7.5, 6, 3.5, 0 masks left
    assert SCHEDULES["cosine"](10, 3) == (2, 3, 5)  # 10, 8.66, 5, 0 masks left
