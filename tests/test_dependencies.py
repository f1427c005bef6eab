"""Every package that is needed is declared and used, and the licences of all that is installed let anyone use them."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Each alone or together with others; MPL-2.0 asks back only changes of its own files.
PERMISSIVE = re.compile(r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|MPL|Mozilla Public License|Unlicense|CC0")
ONLY_TESTED_WITH = {"pyte"}  # LGPL: a terminal that tests read, of which nothing is shipped
COPYLEFT = re.compile(r"GPL|General Public|EUPL|SSPL|Commons Clause|Proprietary", re.IGNORECASE)


def names(lines) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}


def imported() -> set[str]:
    """Distributions that the package's sources import."""
    modules = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    found = modules - set(sys.stdlib_module_names) - {"unmask", "bitsandbytes", "lm_eval"}
    return {canonicalize_name(owners[module][0]) for module in found if module in owners}


def test_dependencies_are_those_that_the_sources_import():
    declared = names(PROJECT["dependencies"])
    extras = set().union(*map(names, PROJECT["optional-dependencies"].values()))
    brought_along = {"huggingface-hub", "sympy", "pyarrow", "jinja2", "tqdm"}
    of_notebooks = {"ipython"}  # imported in one alone
    assert declared - imported() == set()
    assert imported() - declared - extras - brought_along - of_notebooks == set()


@pytest.mark.parametrize("name", sorted(names((ROOT / "constraints.txt").read_text().splitlines()) - ONLY_TESTED_WITH))
def test_licences_are_permissive(name):
    try:
        said = metadata(name)
    except PackageNotFoundError:
        pytest.skip("it is not installed here")
    kinds = [kind for kind in said.get_all("Classifier") or [] if kind.startswith("License ::")]
    licence = said.get("License-Expression") or " ".join(kinds) or (said.get("License") or "").partition("\n")[0]
    assert PERMISSIVE.search(licence), licence
    assert not COPYLEFT.search(licence), licence
