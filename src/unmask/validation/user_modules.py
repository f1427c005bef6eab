"""Import of the user's Python files, each with the modules of its own directory. Torch-free."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

# Begins the package of a directory: a file's neighbours are in it, under names that no other directory's can have.
PREFIX = "unmask_users_"


def import_file(path: Path) -> ModuleType:
    """The module in a file, run once a process, whose imports see the file's directory before anything else.

    `from helpers import score` finds helpers.py beside it, also when it is run later, in a function, and there too
    for the helpers' own imports. No other file sees these modules, not even by the same name.
    """
    path, name = path.resolve(), module_of(path)
    if name not in sys.modules:
        _add_package(path.parent)
        spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
        if spec is None:
            raise ImportError(f"{path} cannot be imported")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            _loader_of(spec).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def module_of(path: Path) -> str:
    """The name under which `import_file` imports a file."""
    path = path.resolve()
    return f"{_package_of(path.parent)}.{path.stem.replace('.', '_')}"


def files_of(module: str) -> list[Path]:
    """The file of an imported module of the user's, and those of its neighbours that have been imported."""
    package, dot, _ = module.partition(".")
    of_directory = dot and package.startswith(PREFIX)
    names = [name for name in sys.modules if name.startswith(package + dot)] if of_directory else [module]
    found = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    return [Path(file) for file in found if file is not None]


@contextmanager
def current_directory(*, first: bool) -> Iterator[None]:
    """The current directory where modules are searched, as under `python -m`: `first` within, and last afterwards."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0 if first else len(sys.path), here)
    try:
        yield
    finally:  # it stays for imports in functions
        sys.path.remove(here)
        sys.path.append(here)


def _package_of(directory: Path) -> str:
    """Name of the package that holds the modules of a directory."""
    return PREFIX + blake2b(str(directory).encode(), digest_size=8).hexdigest()


def _add_package(directory: Path) -> None:
    """Have the package of a directory, and the finder of its modules."""
    name = _package_of(directory)
    if name not in sys.modules:
        package = ModuleType(name, f"Modules of {directory}.")
        package.__path__ = [str(directory)]
        sys.modules[name] = package
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Loader(SourceFileLoader):
    """Runs a module with an `import` statement that finds neighbours first."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds modules of the packages above, to be run by `_Loader`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


def _loader_of(spec: ModuleSpec) -> Any:
    return spec.loader


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` of a module in one of the packages: of its directory's own modules first."""
    package = str((globals or {}).get("__name__")).partition(".")[0]
    if level or not package.startswith(PREFIX) or not _is_neighbour(package, name.partition(".")[0], globals or {}):
        return builtins.__import__(name, globals, locals, fromlist, level)
    whole = f"{package}.{name}"
    if fromlist:
        return builtins.__import__(whole, globals, locals, fromlist, 0)
    importlib.import_module(whole)
    return sys.modules[f"{package}.{name.partition('.')[0]}"]


def _is_neighbour(package: str, name: str, importer: Mapping[str, Any]) -> bool:
    """Whether the package's directory holds a module of that name, other than the one that asks for it.

    A file may be named as the library that it imports, and a plain folder as a library that is installed.
    """
    spec = PathFinder.find_spec(name, sys.modules[package].__path__)
    if spec is None or spec.origin == importer.get("__file__"):
        return False
    return spec.origin is not None or (name not in sys.modules and importlib.util.find_spec(name) is None)
