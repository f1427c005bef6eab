"""What a run says of the code that it ran."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unmask
from unmask.report import environment

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]


def repository(directory: Path) -> str:
    """A repository with a commit, whose name it gives."""
    directory.mkdir(parents=True, exist_ok=True)
    for words in (["init", "-q", "."], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*GIT, *words], cwd=directory, check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=directory, text=True).strip()


def commit_of(root: Path) -> str | None:
    """What the package says that lies in root/src."""
    program = "from unmask.report.environment import commit; print(commit())"
    words = [sys.executable, "-c", program]
    said = subprocess.check_output(words, env={"PYTHONPATH": str(root / "src")}, text=True).strip()
    return None if said == "None" else said


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_the_checkout_s_own_and_not_of_a_repository_around_an_environment(tmp_path):
    package = Path(unmask.__file__).parent
    repository(tmp_path / "project")
    shutil.copytree(package, tmp_path / "project" / "env" / "src" / "unmask")
    around = commit_of(tmp_path / "project" / "env")
    assert around is None or around == environment.commit()  # where the tests' own package was installed by pip
    own = repository(tmp_path / "checkout")
    shutil.copytree(package, tmp_path / "checkout" / "src" / "unmask")
    assert commit_of(tmp_path / "checkout") == own
