"""What SECURITY.md promises of the source as a whole; the tests that it names for the rest are there."""

import ast
import json
import re
import shutil
import tomllib
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unmask.denoisers.convert import convert
from unmask.denoisers.loading import load_denoiser, load_tokenizer, resolve
from unmask.errors import UserError
from unmask.rewards.reward_model import load_reward_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "__import__", "system", "popen", "import_string"}
MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "yaml"}
ALLOWED = {  # and why
    "verifiers/sandbox_worker.py": {"exec", "compile"},  # runs inside the sandbox: it is what that is for
    "validation/user_modules.py": {"__import__"},  # imports the Python files that the user names
}


def faults(text: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Calls and imports in a source that could run what comes from outside."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if method else ""
        of_torch = owner == "torch" and name == "load"
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name in FORBIDDEN - allowed and (not method or owner in ("os", "builtins")):
            found.append(name)
        if of_torch and options.get("weights_only") != "True":
            found.append("torch.load")
        switches = {key: options.get(key) for key in ("shell", "trust_remote_code")}
        found += [f"{key}={value}" for key, value in switches.items() if value not in (None, "False")]
        loads_weights = name == "from_pretrained" and owner not in ("AutoConfig", "PreTrainedTokenizerFast")
        if loads_weights and "use_safetensors" not in options and None not in options:  # None: in a dictionary of them
            found.append(f"{owner}.from_pretrained")
    return found


def test_no_source_unpickles_evaluates_or_asks_a_shell():
    found = {
        str(path.relative_to(ROOT)): faults(
            path.read_text(), frozenset(ALLOWED.get(str(path.relative_to(ROOT / "src" / "unmask")), ()))
        )
        for path in SOURCES
    }
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from dill import loads",
        "os.system(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
    ],
)
def test_faults_are_found(line):
    assert faults(line)


@pytest.mark.parametrize(
    "line", ["network.eval()", "re.compile(x)", "torch.load(path, weights_only=True)", "f(shell=False)"]
)
def test_honest_lines_are_no_faults(line):
    assert faults(line) == []


def with_code(directory: Path, marker: Path) -> str:
    """The embedded model with code beside it, which config.json and tokenizer_config.json ask to be run."""
    shutil.copytree(resolve("embedded:sudoku"), directory)
    (directory / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    places = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"), "theirs.X")
    places |= {"AutoModelForSequenceClassification": "theirs.X", "AutoTokenizer": ["theirs.X", "theirs.X"]}
    for name in ("config.json", "tokenizer_config.json"):
        table = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(table | {"auto_map": places, "tokenizer_class": "X"}))
    return str(directory)


@pytest.mark.parametrize("model_type", ["llama", "theirs", "llada", "Dream", "bert"])
def test_loaders_run_no_code_of_a_checkpoint(model_type, tmp_path):
    marker = tmp_path / "ran"
    model = with_code(tmp_path / "model", marker)
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": model_type}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for load in (load_tokenizer, load_denoiser, convert, lambda model: load_reward_model(model, 1, "cpu")):
        with warnings.catch_warnings(), suppress(UserError):
            warnings.simplefilter("ignore")
            load(model)
    assert not marker.exists()


def test_page_names_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([part.operator for part in pin.specifier] == ["=="] for pin in pins)
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)]), needed
