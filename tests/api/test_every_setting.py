"""Every setting of a training run, given as a flag and from Python: the same recipe."""

import pytest

import unmask
from unmask import methods, rules, tasks
from unmask.cli.main import parse
from unmask.cli.subcommands import COMMANDS
from unmask.settings.reader import leaves
from unmask.settings.recipe import Recipe

# Values of settings that are no numbers, or that take few; and what must be given beside a setting for it to be read.
VALUES = {
    "model": "embedded:sudoku",
    "task": "sudoku",
    "method": "mdpo",
    "method.base": "spg",
    "train.shard": "0",
    "model_format": "mine.py:mine",
    "task.data": "grids.csv",
    "chat.template": "never",
    "chat.system": "Be brief.",
    "chat.prefill": "So",
    "rollout.schedule": "cosine",
    "rollout.unmasking": "random",
    "rollout.caching": "dual",
    "reward.funcs": "task,mine.py:f",
    "reward.weights": "2",
    "reward.on_fault": "none",
    "train.precision": "bf16",
    "train.param_dtype": "bf16",
    "task.size": 6,
    "task.min_empty": 9,
    "task.max_empty": 9,
    "rollout.max_new_tokens": 16,
    "track": "tensorboard",
}
BESIDE = {
    "reward.on_fault": {"reward.funcs": "task,mine.py:f"},
    "reward.batch": {"reward.funcs": "task,reward_model:DIR"},
    "train.param_dtype": {"train.lora_rank": 4},
    "train.lora_alpha": {"train.lora_rank": 4},
    "train.four_bit": {"train.lora_rank": 4},
    "train.ref_model_mixup_alpha": {"train.ref_model_sync_steps": 2},
    "task.data": {},
}


def changed(leaf):
    if leaf.path in VALUES:
        return VALUES[leaf.path]
    if isinstance(leaf.default, bool):
        return not leaf.default
    if isinstance(leaf.default, float):
        return leaf.default / 2 or 0.25
    return 3 if leaf.default is None else leaf.default + 1


def from_flags(values) -> Recipe:
    words = [
        word
        for path, value in values.items()
        for word in (f"--{path.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value))
    ]
    return parse("train", COMMANDS["train"], ["--model", "embedded:sudoku", "--task", "sudoku", *words])[0]


def from_python(values) -> Recipe:
    """The same settings as Python's arguments: each table is an object, or a prefix in TrainingConfig."""
    tables = {}
    for path, value in values.items():
        table, _, name = path.rpartition(".")
        tables.setdefault(table, {})[name] = value
    args, rollout = dict(tables.get("train", {})), dict(tables.get("rollout", {}))
    args |= {name: rollout.pop(name) for name in ("prompts", "num_generations") if name in rollout}
    reward = tables.get("reward", {})
    funcs = reward.pop("funcs", None)
    for table in ("reward", "evaluation", "chat", "report"):
        args |= {f"{table}_{name}": value for name, value in tables.get(table, {}).items()}
    if "unmasking" in rollout:
        rollout["unmasking"] = rules.Random()
    top = tables.get("", {})
    args |= {name: top[name] for name in ("track",) if name in top}
    method = (
        methods.MDPO() if top.get("method") == "mdpo" else methods.DiSPO(**tables.get("method", {}) | based(tables))
    )
    trainer = unmask.Trainer(
        "embedded:sudoku",
        method=method,
        reward_funcs=funcs,
        train_dataset=tasks.Sudoku(**tables.get("task", {})),
        sampler=unmask.Sampler(**rollout),
        args=unmask.TrainingConfig(**args),
        model_format=top.get("model_format"),
    )
    return trainer.recipe


def based(tables) -> dict:
    if "base" in tables.get("method", {}):
        return {"base": methods.SPG()}
    return {"base": methods.DiffuGRPO(**tables["method.base"])} if "method.base" in tables else {}


@pytest.mark.parametrize("leaf", list(leaves(Recipe())), ids=lambda leaf: leaf.path)
def test_every_setting_is_reachable_from_flags_and_from_python(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = BESIDE.get(leaf.path, {}) | {leaf.path: changed(leaf)}
    python = from_python(dict(values))
    assert python == from_flags(values)
    if leaf.path not in ("model", "task"):
        assert python != from_python({})
    (tmp_path / "own.toml").write_text('model = "embedded:sudoku"\ntask.name = "sudoku"\n')
    assert python == unmask.Trainer.from_recipe("own.toml", values).recipe
