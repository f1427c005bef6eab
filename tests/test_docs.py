"""What the pages show works as pasted: rows of data, TOML, Python and commands."""

import json
import shlex
from pathlib import Path

import pytest

from helpers.chat_tokenizers import FAMILIES, byte_tokenizer
from helpers.pages import ROOT, blocks, commands, words_of, write_own
from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.denoisers.loading import save_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.errors import UserError
from unmask.tasks import Code
from unmask.verifiers.sandbox import check_sandbox


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A checkpoint with random weights and a byte-level tokenizer with LLaDA's template."""
    directory = tmp_path_factory.mktemp("model")
    template, specials, _ = FAMILIES["llada"]
    tokenizer = byte_tokenizer(template, specials)
    tokenizer.add_special_tokens({"mask_token": "<|mdm_mask|>"})
    sizes = {"hidden": 16, "layers": 1, "heads": 1, "max_length": 512, "seed": 0}
    ids = {"mask_id": tokenizer.mask_token_id, "eos_id": tokenizer.eos_token_id}
    save_denoiser(tiny_denoiser(vocabulary=len(tokenizer), **ids, **sizes), tokenizer, directory)
    return str(directory)


TINY = shlex.split(
    "--rollout.prompts 1 --rollout.max-new-tokens 96 --task.max-new-tokens 96 --train.max-steps 1 "
    "--train.micro-batch 0 --train.num-iterations 1 --train.threads 1"
)
SAMPLED = shlex.split(
    "--rollout.num-generations 2 --rollout.block-length 96 --rollout.steps 2 --train.lora-rank 2 "
    "--evaluation.greedy-steps 2"
)


@pytest.mark.parametrize(("file", "flags"), [("train.jsonl", [*TINY, *SAMPLED]), ("pairs.jsonl", TINY)])
def test_train_runs_on_the_rows_of_data_md_by_its_command(file, flags, model, tmp_path, monkeypatch):
    """As pasted, but for the model and sizes."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "data.md"
    (rows,) = (text for text in blocks(page, "jsonl") if ('"chosen"' in text) == (file == "pairs.jsonl"))
    Path(file).write_text(rows)
    (command,) = (
        command for command in commands(page) if f"--task.data {file} " in f"{command} " and " train " in command
    )
    assert main([*words_of(command), "--model", model, *flags, "--output", "run"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 1


def test_pretrain_learns_the_rows_of_data_md_by_its_command(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "data.md"
    Path("train.jsonl").write_text(blocks(page, "jsonl")[0])
    (command,) = (command for command in commands(page) if " pretrain " in command)
    assert main([*words_of(command), "--model", model, "--max-steps", "1", "--threads", "1"]) == 0
    assert Path("smollm2-tuned/model.safetensors").is_file()


QUICK = shlex.split(
    "--rollout.prompts 2 --rollout.num-generations 2 --train.max-steps 1 --train.examples 4 --train.threads 1 "
    "--evaluation.examples 4 --evaluation.greedy-steps 4"
)


def test_your_own_md_has_a_method_a_task_and_a_rule_in_under_forty_lines_each(tmp_path):
    write_own(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_method.py", "my_rule.py", "my_task.py"]
    for path in tmp_path.iterdir():
        assert len(path.read_text().splitlines()) < 40
        assert " = " in path.read_text().split('"""')[1]  # the mathematics


def test_train_runs_and_resumes_the_method_and_rule_of_your_own_md_by_its_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    pasted = [command for command in commands(ROOT / "docs" / "your-own.md") if "runs/mine" in command]
    train, resume = map(words_of, pasted)
    assert main([*train, *QUICK]) == 0
    assert main([*resume, "--train.max-steps", "2"]) == 0
    assert json.loads(Path("runs/mine/summary.json").read_text())["steps"] == 2


def test_train_learns_the_task_of_your_own_md_by_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    (train,) = (words_of(command) for command in commands(ROOT / "docs" / "your-own.md") if "my_task.py" in command)
    assert main([*train, *QUICK, "--output", "run"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 1


def test_recipe_of_your_own_md_is_read_as_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    Path("own.toml").write_text(*blocks(ROOT / "docs" / "your-own.md", "toml"))
    method = parse("train", COMMANDS["train"], ["--recipe", "own.toml"])[0].method
    assert (method.name, method.caution) == ("my-method", 0.2)


def test_code_md_s_program_passes_its_own_problems(tmp_path, monkeypatch, capsys):
    try:
        check_sandbox()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "code.md"
    (rows,), (program,) = blocks(page, "jsonl"), blocks(page, "python")
    Path("problems.jsonl").write_text(rows)
    exec(compile(program, "code.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "[1.0, 1.0]\n"
    assert len(Code(data="problems.jsonl").examples("test", 9, seed=0)) == 2
