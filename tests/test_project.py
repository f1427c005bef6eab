"""Files about the project agree with one another: versions, extras, hooks, the workflow, templates, the packages."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import package
import unmask

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_versions_agree():
    changelog = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert changelog[0] == "Unreleased"
    assert changelog[1] == PROJECT["version"] == unmask.__version__ == read("CITATION.cff")["version"]


def test_citation_has_what_its_format_requires():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert citation["license"] == PROJECT["license"]


def test_extras_that_texts_name_are_there():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]
    named = {name for path in files for name in re.findall(r"(?:unmask|\.)\[([a-z-]+)\]", path.read_text())}
    assert {"data", "lm-eval", "four-bit", "dev"} <= named
    assert named <= set(PROJECT["optional-dependencies"])


def test_hooks_are_the_commands_of_make_lint():
    """With the programs of .venv, so at the versions of constraints.txt."""
    (local,) = read(".pre-commit-config.yaml")["repos"]
    hooks = {hook["entry"].split()[0].rpartition("/")[2]: hook["entry"].split() for hook in local["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE).group(1)
    assert set(hooks) == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
    assert all(words[0].startswith(".venv/bin/") for words in hooks.values())


def test_workflow_runs_the_commands_of_ci_run():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    targets = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert {"test", "long", "site", "package"} <= set(targets)
    assert set(targets) <= set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE).group(1).split())


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        return
    assert {"name", "description", "body"} <= set(form)
    assert all({"type", "id", "attributes"} <= set(field) for field in form["body"])


def test_fault_template_asks_for_the_version():
    assert "unmask --version --verbose" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text()


# ---- the packages: what `make package` refuses ----


def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n")) - {""}


def test_sdist_holds_what_git_tracks_and_its_metadata():
    files = tracked()
    own = {"PKG-INFO", "setup.cfg", "src/unmask.egg-info/SOURCES.txt"}
    assert package.faults_of_sdist(files | own, files) == []
    assert package.faults_of_sdist(files | {"runs/mine/recipe.toml"}, files) == ["runs/mine/recipe.toml is too many"]
    assert package.faults_of_sdist(files - {"tests/test_docs.py"}, files) == ["tests/test_docs.py is missing"]


def test_wheel_holds_the_package_alone():
    files = tracked()
    packed = {name.removeprefix("src/") for name in files if name.startswith("src/")} | {"unmask-1.dist-info/METADATA"}
    assert package.faults_of_wheel(packed, files) == []
    assert package.faults_of_wheel(packed | {"tests/test_docs.py"}, files) == ["tests/test_docs.py is too many"]
    assert package.faults_of_wheel(packed - {"unmask/py.typed"}, files) == ["unmask/py.typed is missing"]


def test_manifest_names_what_git_tracks():
    """What git tracks lies in a folder, or has a name, that the source distribution takes."""
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line and line[0] != "#"]
    folders = {words[1] for words in lines if words[0] == "graft"}
    patterns = [pattern for words in lines if words[0] == "include" for pattern in words[1:]] + [
        "LICENSE",
        "pyproject.toml",
    ]
    patterns.append("MANIFEST.in")
    left = [
        name
        for name in tracked()
        if name.partition("/")[0] not in folders and not any(Path(name).match(pattern) for pattern in patterns)
    ]
    assert left == []
