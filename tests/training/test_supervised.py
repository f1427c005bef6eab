"""Supervised training: its loss is the ELBO it claims, it learns, it is reproducible; shipped models are its work."""

import hashlib
import json
import math
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest
import torch

from unmask.cli.main import main
from unmask.data.example import prompt_key
from unmask.data.examples import Examples
from unmask.data.tokenization import encode, task_tokenizer
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.settings.commands import PretrainRecipe
from unmask.settings.reader import build
from unmask.settings.recipe_files import read_recipe
from unmask.tasks import Sudoku
from unmask.training.supervised import elbo_loss, pretrain, shuffled, supervised_batch, supervised_examples
from unmask.uniforms import Uniforms

ASSETS = Path(str(files("unmask.denoisers"))) / "assets"
QUICK = {
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "max_length": 32,
    "batch": 8,
    "examples": 64,
    "max_steps": 3,
    "threads": 1,
}


class Uninformed:
    """A denoiser that gives every token the same probability."""

    mask_id, size = 6, 7

    def __call__(self, tokens, attention, asked, reducer):
        logits = torch.zeros(asked.numel(), self.size)
        return tuple(part.unflatten(0, asked.shape) for part in reducer.from_logits(logits, slice(0, asked.numel())))


def sudoku_batch(rows: int):
    task = Sudoku()
    tokenizer = task_tokenizer(task.vocabulary)
    items = task.examples("train", rows, 0)
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, max_prompt_tokens=16)
    return supervised_batch(examples, encode(tokenizer, [item.solution for item in items]), list(range(rows)), 16)


def test_elbo_loss_of_an_uninformed_model_is_log_vocabulary():
    """E[(1/t) masked count] = L, whatever the mask rate: the loss has mean log V."""
    batch = sudoku_batch(64)
    losses = [float(elbo_loss(Uninformed(), batch, Uniforms().key(draw))) for draw in range(60)]
    spread = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert sum(losses) / len(losses) == pytest.approx(math.log(7), abs=4 * spread)
    assert spread < 0.05


def test_elbo_loss_masks_no_prompt_and_depends_on_the_key_alone():
    batch = sudoku_batch(16)
    seen = []

    class Watching(Uninformed):
        def __call__(self, tokens, *rest):
            seen.append(tokens)
            return super().__call__(tokens, *rest)

    for key in (1, 1, 2):
        elbo_loss(Watching(), batch, Uniforms().key(key))
    assert torch.equal(seen[0][:, :16], batch.tokens_NL[:, :16])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def masked_shares(batch, key):
    """Share of each row's completion that is masked."""
    seen = []

    class Watching(Uninformed):
        def __call__(self, tokens, *rest):
            seen.append(tokens)
            return super().__call__(tokens, *rest)

    elbo_loss(Watching(), batch, Uniforms().key(key))
    return (seen[0][:, batch.prompt_length :] == Uninformed.mask_id).double().mean(1)


def test_elbo_loss_mask_ratios_are_stratified_over_the_batch():
    """One row in each sixteenth of (0, 1]: the batch's mean ratio varies less than that of independent ones."""
    batch = sudoku_batch(16)
    means = torch.stack([masked_shares(batch, key).mean() for key in range(60)])
    independent = (1 / 12 + 1 / 6 / 16) / 16  # var t, and of the 16 tokens' draws
    assert means.mean().item() == pytest.approx(0.5, abs=0.02)
    assert means.var().item() < independent / 3


def test_elbo_loss_gives_every_row_every_mask_ratio():
    """A row's place in the batch says nothing of its ratio: over batches each row's ratios are spread like t's."""
    batch = sudoku_batch(16)
    shares = torch.stack([masked_shares(batch, key) for key in range(200)])
    assert torch.allclose(shares.mean(0), torch.full((16,), 0.5).double(), atol=5 * 0.31 / 200**0.5)
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
        assert (((shares >= low) & (shares < high)).double().mean(0) > 0.1).all()


@pytest.mark.parametrize("count", [1, 12, 64])
def test_shuffled_gives_every_example_once_an_epoch_in_an_order_of_its_own(count):
    drawn = list(islice(shuffled(count, Uniforms().key("order")), 4 * count))
    epochs = [drawn[start : start + count] for start in range(0, len(drawn), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert drawn == list(islice(shuffled(count, Uniforms().key("order")), 4 * count))
    if count > 1:
        assert len({tuple(epoch) for epoch in [*epochs, range(count)]}) == 5


def test_pretrain_is_reproducible_and_learns():
    recipe = build(PretrainRecipe, QUICK | {"max_steps": 40, "learning_rate": 3e-3})
    tokenizer = task_tokenizer(recipe.task.vocabulary)
    first, second = pretrain(recipe, tokenizer), pretrain(recipe, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    batch = sudoku_batch(64)
    untrained = pretrain(build(PretrainRecipe, QUICK | {"max_steps": 1, "learning_rate": 1e-9}), tokenizer)
    with torch.no_grad():
        before, after = (float(elbo_loss(model, batch, Uniforms().key(0))) for model in (untrained, first))
    assert after < before - 0.2


def test_pretrain_in_micro_batches_equals_one_batch():
    quick = QUICK | {"model": "embedded:sudoku", "max_steps": 2, "learning_rate": 1e-3}
    tokenizer = load_tokenizer("embedded:sudoku")
    whole, parts = (pretrain(build(PretrainRecipe, quick | {"micro_batch": size}), tokenizer) for size in (0, 3))
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    base = load_denoiser("embedded:sudoku")
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), base.parameters(), strict=True))


def test_pretrain_keeps_the_weights_with_the_best_validation_loss(monkeypatch):
    """At a ruinous rate the first validation is the best, and the run ends with the weights it had then."""
    quick = QUICK | {"model": "embedded:sudoku", "learning_rate": 0.3, "warmup_steps": 4, "validation_examples": 8}
    tokenizer = load_tokenizer("embedded:sudoku")
    seen = []
    monkeypatch.setattr(
        "unmask.report.progress.Progress.message",
        lambda self, text: seen.append(float(text.split()[4])) if "validation loss" in text else None,
    )
    kept = pretrain(build(PretrainRecipe, quick | {"max_steps": 4, "eval_steps": 1}), tokenizer)
    best = 1 + min(range(4), key=lambda step: seen[step])
    assert best < 4
    then = pretrain(build(PretrainRecipe, quick | {"max_steps": best, "eval_steps": 1}), tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), then.parameters(), strict=True))


def test_pretrain_does_not_train_on_validation_examples():
    quick = QUICK | {"model": "embedded:sudoku", "max_steps": 1, "batch": 64, "learning_rate": 1e-3}
    tokenizer = load_tokenizer("embedded:sudoku")
    plain, held = (pretrain(build(PretrainRecipe, quick | {"validation_examples": n}), tokenizer) for n in (0, 16))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), held.parameters(), strict=True))


def test_pretrain_to_saves_adapters_merged(tmp_path, capsys):
    sizes = ("hidden", "layers", "heads", "max_length")  # the checkpoint's own
    quick = {key: value for key, value in QUICK.items() if key not in sizes}
    flags = [word for key, value in quick.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = ["pretrain", "--model", "embedded:sudoku", "--lora-rank", "2", *flags, "--output", str(tmp_path / "m")]
    assert main(command) == 0
    tuned, base = load_denoiser(str(tmp_path / "m")), load_denoiser("embedded:sudoku")
    changed = [
        name
        for (name, ours), theirs in zip(tuned.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    ]
    assert changed
    assert all("proj" in name for name in changed)
    capsys.readouterr()
    assert main(["pretrain", "--lora-rank", "2", "--output", str(tmp_path / "new")]) == 2
    assert "lora_rank adapts a checkpoint" in capsys.readouterr().err


def test_pretrain_to_writes_a_model_and_prints_its_hash(tmp_path, capsys):
    flags = [word for key, value in QUICK.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["pretrain", *flags, "--output", str(tmp_path / "model")]) == 0
    digest = hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out
    assert load_denoiser(str(tmp_path / "model")).mask_id == 6
    assert main(["pretrain", *flags, "--output", str(tmp_path / "model")]) == 2


@pytest.mark.parametrize("name", ["sudoku", "countdown", "arithmetic"])
def test_pretrain_recipes_embedded_models_have_the_committed_hash(name):
    weights = ASSETS / name / "model.safetensors"
    hashes = {line.split()[1]: line.split()[0] for line in (ASSETS / "SHA256").read_text().splitlines()}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == hashes[name]
    assert weights.stat().st_size <= 4_000_000
    recipe = build(PretrainRecipe, read_recipe(f"pretrain-{name}"))
    tokenizer = load_tokenizer(f"embedded:{name}")
    denoiser = load_denoiser(f"embedded:{name}")
    assert denoiser.model.config.hidden_size == recipe.hidden
    assert len(tokenizer) == len(recipe.task.vocabulary) + 2
    assert tokenizer.mask_token_id == denoiser.mask_id


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def taught(tmp_path, rows, *flags):
    command = ["pretrain", "--model", "embedded:arithmetic", "--task", "dataset", "--task.max-new-tokens", "16"]
    command += ["--task.data", str(rows_file(tmp_path, rows)), "--max-steps", "1", "--batch", "2", "--threads", "1"]
    return main([*command, "--output", str(tmp_path / "tuned"), *flags])


@pytest.mark.parametrize(
    ("rows", "flags", "columns"),
    [
        ([{"prompt": "1+1=", "response": "2"}], (), "response"),
        ([{"prompt": "1+1=", "answer": "2", "completion": None}], (), "answer"),
        ([{"prompt": "1+1="}], (), "nothing"),
        ([{"messages": [{"role": "user", "content": "1+1="}]}], ("--task.prompt-column", "messages"), "nothing"),
    ],
)
def test_pretrain_refuses_rows_without_a_completion(tmp_path, capsys, rows, flags, columns):
    assert taught(tmp_path, rows, "--task.test-data", str(other_rows(tmp_path)), *flags) == 2
    said = capsys.readouterr().err
    assert f"rows.jsonl, line 1: there is no completion to learn from; beside the prompt the row has {columns}" in said
    assert not (tmp_path / "tuned").exists()


def other_rows(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"prompt": "3+3=", "messages": [{"role": "user", "content": "3+3="}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pretrain_learns_the_last_message_of_the_assistant(tmp_path):
    turns = [("user", "1+1="), ("assistant", "2"), ("user", "2+2="), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for place, (row, settings) in enumerate(
        [({"messages": messages}, {"prompt_column": "messages"}), ({"prompt": messages[:3], "completion": "4"}, {})]
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        data = {"name": "dataset", "data": str(rows_file(folder, [row])), "test_data": str(other_rows(folder))}
        recipe = build(
            PretrainRecipe,
            {"task": data | settings, "model": "embedded:arithmetic", "examples": 1, "validation_examples": 0},
        )
        (item,) = supervised_examples(recipe)
        assert (item.solution, item.messages, item.prompt) == ("4", tuple(messages[:3]), "1+1=\n\n2\n\n2+2=")


def duplicated():
    """Every prompt occurs twice, spaced and answered differently."""
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(30)]
    return rows + [{"prompt": f" {n}+1= ", "completion": f"{n}+1"} for n in range(29, -1, -1)]


@pytest.mark.parametrize("task", ["sudoku", "countdown", "arithmetic", "dataset"])
def test_supervised_examples_train_on_no_prompt_that_validates(tmp_path, task):
    settings = {"name": task}
    if task == "dataset":
        settings |= {"data": str(rows_file(tmp_path, duplicated())), "test_data": str(other_rows(tmp_path))}
    if task == "arithmetic":
        settings |= {"terms": 3}
    sizes = {"validation_examples": 10, "examples": 3000}
    recipe = build(PretrainRecipe, sizes | {"task": settings, "model": "embedded:sudoku"})
    items = supervised_examples(recipe)
    every = recipe.task.examples("train", 3010, 0)
    assert items[-10:] == every[-10:]
    held = {prompt_key(item) for item in items[-10:]}
    assert not held & {prompt_key(item) for item in items[:-10]}
    kept = [item for item in every[:-10] if prompt_key(item) not in held]
    assert items[:-10] == kept
    if task == "dataset":
        assert len(items) == 60 - 10


def test_pretrain_refuses_data_whose_prompts_all_validate(tmp_path, capsys):
    rows = [{"prompt": "1+1=", "completion": "2"}] * 8
    assert taught(tmp_path, rows, "--task.test-data", str(other_rows(tmp_path)), "--validation-examples", "2") == 2
    assert "leaves no training examples" in capsys.readouterr().err
