"""`unmask --version`, and the environment that a report of a fault needs."""

import importlib.metadata
import os
import re
from pathlib import Path

import torch

import unmask
from unmask.cli.main import main
from unmask.cli.version import environment


def test_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unmask {unmask.__version__}\n"


def test_verbose_tells_what_a_report_needs(capsys):
    assert main(["--version", "--verbose"]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    names = {"unmask", "Python", "system", "torch", "CPU", "transformers", "peft", "bubblewrap"}
    assert names <= set(told)
    assert told["unmask"].startswith(f"{unmask.__version__}, ")
    assert told["torch"].startswith(f"{torch.__version__}, built for ")
    assert told["CPU"].startswith(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    assert any(name.startswith("GPU") for name in told)


def test_verbose_tells_no_paths_names_or_keys(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "JUDGE_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret-of-the-user")
    text = "\n".join(f"{name}: {value}" for name, value in environment())
    assert "secret-of-the-user" not in text
    assert os.uname().nodename not in re.split(r"[\s,]+", text)
    for path in (Path.home(), Path.cwd(), Path(unmask.__file__).parent):
        assert f"{path}/" not in f"{text}/"


def test_version_takes_no_other_word(capsys):
    assert main(["--version", "--verbos"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_extras_are_told_where_they_are_installed(monkeypatch):
    needed = ["torch>=2", "peft>=0.1", "bitsandbytes>=0.4; extra == 'four-bit'", "lm-eval; extra == 'lm-eval'"]
    needed += ['pytest>=8; extra == "dev"']

    def version(name):
        if name in ("bitsandbytes", "pytest"):
            return "9.9"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr("unmask.report.environment.version", version)
    monkeypatch.setattr("unmask.cli.version.requires", lambda name: needed)
    told = dict(environment())
    assert (told["bitsandbytes"], told["peft"]) == ("9.9", "not installed")
    assert not {"lm-eval", "pytest"} & set(told)
