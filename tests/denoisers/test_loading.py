"""Models by their name on the Hub, and special tokens that config.json leaves to other files."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from unmask.cli.main import main
from unmask.data.tokenization import encode, raw_texts
from unmask.denoisers import loading
from unmask.denoisers.loading import load_denoiser, load_tokenizer, resolve, save_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.errors import UserError
from unmask.sampling.sampler import Sampler
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.types import Prompts
from unmask.uniforms import Uniforms

SUDOKU = Path(str(files("unmask.denoisers"))) / "assets" / "sudoku"
PROMPTS = Prompts(
    tokens_NP=torch.zeros(8, 4, dtype=torch.long),
    attention_NP=torch.ones(8, 4, dtype=torch.bool),
    prompt_N=torch.arange(8),
    sample_N=torch.zeros(8, dtype=torch.long),
)


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(SUDOKU, tmp_path / "model")


@pytest.fixture(autouse=True)
def _nothing_downloaded():
    loading._downloaded.cache_clear()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_resolve_downloads_a_hub_name_once(monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(SUDOKU)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert load_denoiser("org/model-7.b").eos_id == load_tokenizer("org/model-7.b").eos_token_id
    ((name, options),) = asked
    assert name == "org/model-7.b"
    assert not any(pattern in options["allow_patterns"] for pattern in ("*.bin", "*.pt", "*", "*.gguf"))
    assert options["ignore_patterns"] == ["*/*"]


def test_resolve_prefers_a_directory_to_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    shutil.copytree(SUDOKU, "org/name")
    assert resolve("org/name") == Path("org/name")
    Path("org/empty").mkdir()
    with pytest.raises(UserError, match=r"has no config.json"):
        resolve("org/empty")
    for name in ("nowhere", "/no/where", "a/b/c", "./here", "../beside"):
        with pytest.raises(UserError, match=r"no such directory, and only names of the form org/name are looked up"):
            resolve(name)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot\nfind it"), ConnectionError("no network")])
def test_resolve_names_a_model_that_cannot_be_had(monkeypatch, error):
    def download(name, **options):
        raise error

    monkeypatch.setattr(loading, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(
        UserError, match=r"'org/name': there is no such directory, and the Hub .*\((cannot find it|no network)\)"
    ):
        resolve("org/name")


def test_resolve_cuts_a_long_error_of_the_hub_between_words(monkeypatch):
    def download(name, **options):
        raise ConnectionError("syllables " * 100)

    monkeypatch.setattr(loading, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"\((syllables ){19}\.\.\.\): check name.*hf auth login"):
        resolve("org/name")


def test_resolve_offline_says_that_the_hub_is_not_asked():
    with pytest.raises(UserError, match=r"'org/name': .*HF_HUB_OFFLINE is set: unset it") as caught:
        resolve("org/name")
    assert "hf auth login" not in str(caught.value)


def test_load_denoiser_names_convert_where_there_is_no_mask_token(model):
    change(model / "config.json", mask_token_id=None)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"names no mask token: .*autoregressive.* unmask convert"):
        load_denoiser(str(model))


def test_load_denoiser_reads_special_tokens_from_other_files(model):
    change(model / "config.json", eos_token_id=None, mask_token_id=None)
    change(model / "generation_config.json", eos_token_id=3)
    denoiser = load_denoiser(str(model))
    assert denoiser.eos_id == 3
    assert denoiser.mask_id == load_tokenizer(str(SUDOKU)).mask_token_id
    (model / "generation_config.json").unlink()
    assert load_denoiser(str(model)).eos_id == load_tokenizer(str(SUDOKU)).eos_token_id


@pytest.mark.parametrize("others", [[], [2]])
def test_load_denoiser_takes_the_first_of_several_end_tokens(model, others, recwarn):
    change(model / "config.json", eos_token_id=[5, *others])
    assert load_denoiser(str(model)).eos_id == 5
    assert [str(warning.message) for warning in recwarn] == ["model names eos_token_id [5, 2]: 5 is taken"] * len(
        others
    )


@pytest.mark.parametrize(
    ("config", "generation", "others"),
    [
        (5, None, ()),
        (5, 5, ()),
        (5, 2, (2,)),
        (5, [5, 2], (2,)),
        (5, [3, 2, 5], (2, 3)),
        ([5, 3], [2], (2, 3)),
        (None, [5, 2], (2,)),
        (5, [6, 2], (2,)),  # 6 masks
        (5, [None, "2", 2.0], ()),
    ],
)
@pytest.mark.filterwarnings("ignore:.* names eos_token_id")
def test_load_denoiser_knows_every_end_token_that_is_named(config, generation, others, model, tmp_path):
    change(model / "config.json", eos_token_id=config)
    change(model / "generation_config.json", eos_token_id=generation)
    denoiser = load_denoiser(str(model))
    assert (denoiser.eos_id, denoiser.other_end_ids) == (5, others)
    assert denoiser.mask_id == 6
    if not isinstance(generation, list) or all(type(token) is int for token in generation):
        save_denoiser(denoiser, load_tokenizer(str(model)), tmp_path / "saved")
        assert load_denoiser(str(tmp_path / "saved")).other_end_ids == others


def test_rewards_and_logs_read_text_without_an_end_token_that_generation_config_names(tmp_path):
    """The tokenizer knows it as a word like any other."""
    model = shutil.copytree(SUDOKU.parent / "arithmetic", tmp_path / "model")
    tokenizer = load_tokenizer(str(model))
    (digit,) = encode(tokenizer, ["7"])[0]
    change(model / "generation_config.json", eos_token_id=[load_denoiser(str(model)).eos_id, digit])
    file = tmp_path / "mine.py"
    file.write_text("def f(completions, **columns):\n    return [float('7' in text) for text in completions]\n")
    document = {
        "model": str(model),
        "task": {"name": "arithmetic"},
        "method": {"name": "diffu-grpo"},
        "reward": {"funcs": f"{file}:f"},
        "rollout": {"prompts": 4, "num_generations": 8, "steps": 4, "max_new_tokens": 16, "temperature": 3.0},
        "train": {"max_steps": 1, "examples": 8, "threads": 1},
        "evaluation": {"examples": 2, "greedy_steps": 4, "batch": 4},
    }
    trainer = build_trainer(build(Recipe, document))
    metrics, sample = trainer.step(0)
    assert metrics["reward"] == 0.0
    assert not any("7" in completion["text"] for completion in sample["completions"])
    examples = trainer.source.examples
    assert examples.texts(tokenizer, [0], [encode(tokenizer, ["373"])[0]]) == [examples.prefills[0] + "3"]


def test_load_denoiser_never_samples_ids_in_holes_of_the_tokenizer(tmp_path):
    """Ids among those of the tokenizer that have no token, and so no text, however likely."""
    tokenizer = load_tokenizer("embedded:sudoku")
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    moved = {token: index + 3 * (index >= 2) for token, index in vocabulary.items()}  # 2, 3 and 4 are none
    document["model"]["vocab"] = moved
    for token in document["added_tokens"]:
        token["id"] = moved[token["content"]]
    mask_id, eos_id = moved["<|mask|>"], moved["<|endoftext|>"]
    padded = tiny_denoiser(
        vocabulary=40, mask_id=mask_id, eos_id=eos_id, hidden=16, layers=1, heads=2, max_length=48, seed=0
    )
    with torch.no_grad():
        padded.model.lm_head.weight[2:5] = 5 * padded.model.lm_head.weight[:1]
    save_denoiser(padded, tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    denoiser, tokenizer = load_denoiser(str(tmp_path)).eval(), load_tokenizer(str(tmp_path))
    assert sorted(tokenizer.get_vocab().values()) == sorted(moved.values())
    assert (denoiser.spelt, denoiser.holes) == (max(moved.values()) + 1, (range(2, 5),))
    known = set(moved.values())
    for temperature in (0.0, 1.0, 2.0):
        sampler = Sampler(max_new_tokens=16, block_length=16, steps=4, temperature=temperature)
        tokens_NL = sampler(denoiser, PROMPTS, Uniforms()).tokens_NL
        assert known.issuperset(tokens_NL.flatten().tolist())
    assert raw_texts(tokenizer, [[0, 3, 0], [0, 1]])[0].count("<id 3>") == 1
    assert main(["sample", "--model", str(tmp_path)]) == 0


def test_load_denoiser_never_samples_ids_beyond_the_tokenizer(tmp_path, capsys):
    """A padded vocabulary, as published ones are: what is sampled can be spelt."""
    tokenizer = load_tokenizer("embedded:sudoku")
    known = len(tokenizer)
    padded = tiny_denoiser(
        vocabulary=known + 90,
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        hidden=16,
        layers=1,
        heads=2,
        max_length=48,
        seed=0,
    )
    save_denoiser(padded, tokenizer, tmp_path)
    denoiser = load_denoiser(str(tmp_path)).eval()
    assert denoiser.spelt == known
    assert load_denoiser("embedded:sudoku").spelt == load_denoiser("embedded:sudoku").model.config.vocab_size
    assert denoiser.holes == ()
    for temperature in (0.0, 1.0, 2.0):
        sampler = Sampler(max_new_tokens=16, block_length=16, steps=4, temperature=temperature)
        assert int(sampler(denoiser, PROMPTS, Uniforms()).tokens_NL.max()) < known
    assert main(["sample", "--model", str(tmp_path)]) == 0
    assert "None" not in capsys.readouterr().out
