"""A flag that would be accepted and never read is refused by name."""

import pytest

from unmask.cli.main import COMMANDS, parse
from unmask.errors import UserError

PAIRS = ("--task", "pairs", "--method", "vrpo")


@pytest.mark.parametrize(
    ("command", "words", "flag"),
    [
        ("train", [*PAIRS, "--reward.functions", "task"], "--reward.functions"),
        ("train", [*PAIRS, "--reward.weights", "2"], "--reward.weights"),
        ("train", [*PAIRS, "--rollout.temperature", "0.5"], "--rollout.temperature"),
        ("train", [*PAIRS, "--rollout.unmasking", "threshold"], "--rollout.unmasking"),
        ("train", [*PAIRS, "--train.shuffle-rewards", "true"], "--train.shuffle-rewards"),
        ("train", ["--train.lora-alpha", "8"], "--train.lora-alpha"),
        ("train", ["--train.reference-mixup", "0.5"], "--train.reference-mixup"),
        ("train", ["--reward.batch", "4"], "--reward.batch"),
        ("pretrain", ["--model", "somewhere", "--hidden", "512"], "--hidden"),
        ("pretrain", ["--model", "somewhere", "--max-length=64"], "--max-length"),
        ("pretrain", ["--lora-alpha", "8"], "--lora-alpha"),
        ("pretrain", ["--validate-every", "8"], "--validate-every"),
    ],
)
def test_parse_refuses_flags_that_nothing_reads(command, words, flag):
    with pytest.raises(UserError, match=f"{flag} would not be read"):
        parse(command, COMMANDS[command], words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", [*PAIRS, "--rollout.prompts", "4", "--rollout.max-new-tokens", "64"]),
        ("train", ["--train.lora-alpha", "8", "--train.lora-rank", "4"]),
        ("train", ["--reward.batch", "4", "--reward.functions", "reward_model:somewhere"]),
        ("pretrain", ["--hidden", "512"]),
        ("pretrain", ["--model", "somewhere", "--lora-rank", "4", "--lora-alpha", "8"]),
    ],
)
def test_parse_takes_flags_that_are_read(command, words):
    parse(command, COMMANDS[command], words)
