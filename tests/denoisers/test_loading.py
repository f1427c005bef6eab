"""Models by their name on the Hub, and special tokens that config.json leaves to other files."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from unmask.cli.main import main
from unmask.denoisers import loading
from unmask.denoisers.loading import load_denoiser, load_tokenizer, resolve, save_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.errors import UserError
from unmask.sampling.sampler import Sampler
from unmask.types import Prompts
from unmask.uniforms import Uniforms

SUDOKU = Path(str(files("unmask.denoisers"))) / "assets" / "sudoku"


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
    for name in ("org/empty", "nowhere", "/no/where", "a/b/c"):
        with pytest.raises(UserError, match=r"has no config.json"):
            resolve(name)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot\nfind it"), ConnectionError("no network")])
def test_resolve_names_a_model_that_cannot_be_had(monkeypatch, error):
    def download(name, **options):
        raise error

    monkeypatch.setattr(loading, "snapshot_download", download)
    with pytest.raises(UserError, match=r"'org/name' is no directory, and the Hub .*\((cannot find it|no network)\)"):
        resolve("org/name")


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
    prompts = Prompts(
        tokens_NP=torch.zeros(8, 4, dtype=torch.long),
        attention_NP=torch.ones(8, 4, dtype=torch.bool),
        prompt_N=torch.arange(8),
        sample_N=torch.zeros(8, dtype=torch.long),
    )
    for temperature in (0.0, 1.0, 2.0):
        sampler = Sampler(max_new_tokens=16, block_length=16, steps=4, temperature=temperature)
        assert int(sampler(denoiser, prompts, Uniforms()).tokens_NL.max()) < known
    assert main(["sample", "--model", str(tmp_path)]) == 0
    assert "None" not in capsys.readouterr().out
