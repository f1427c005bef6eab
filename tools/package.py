"""Build wheel and sdist, check them, install the wheel in an empty environment and use it from an empty directory.

    make package                   # a minute or two, most of it the installation; dist/ holds both
    python tools/package.py --output DIR --table

Ends with status 1 where a file is missing or too many, or a command fails. `--table` also tells what the installation
takes, package by package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TINY = "--rollout.prompts 2 --train.steps 2 --train.threads 1 --evaluation.examples 8 --evaluation.greedy-steps 4"
COMMANDS = (
    "unmask --version",
    f"unmask train {_TINY} --output run",
    "unmask sample --model run --item 3",
    "unmask evaluate --model run --steps 4 --examples 8 --output table.json",
    'python -c \'import unmask, sys; sys.exit(any(name in sys.modules for name in ("torch", "numpy")))\'',
)
MADE = ("run/summary.json", "run/curve.png", "run/checkpoints/step_000002/model.safetensors", "table.json")
_SHIPPED = ("py.typed", "settings/recipes/sudoku-dispo.toml", "denoisers/assets/sudoku/model.safetensors")
_TOLD = 8  # packages in the table


def run(*command: str | Path, **options: object) -> str:
    """What a command prints. Raises SystemExit with all of it where it fails."""
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def build(output: Path) -> tuple[Path, Path]:
    """Wheel and sdist, made in an environment of their own and checked by twine."""
    run(sys.executable, "-m", "build", "--outdir", output, ROOT)
    (wheel,), (sdist,) = output.glob("unmask-*.whl"), output.glob("unmask-*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def faults_of_sdist(names: set[str], tracked: set[str]) -> list[str]:
    """Files that a source distribution lacks or has too many: it holds what git tracks, and its own metadata."""
    own = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("src/unmask.egg-info/")}
    return sorted(
        [f"{name} is missing" for name in tracked - names] + [f"{name} is too many" for name in names - tracked - own]
    )


def faults_of_wheel(names: set[str], tracked: set[str]) -> list[str]:
    """Likewise of a wheel: the package as git tracks it, and its metadata."""
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/unmask/")}
    code = {name for name in names if ".dist-info/" not in name}
    missing = (package | {f"unmask/{name}" for name in _SHIPPED}) - code
    return sorted([f"{name} is missing" for name in missing] + [f"{name} is too many" for name in code - package])


def check(wheel: Path, sdist: Path) -> None:
    """Raise SystemExit unless both hold what they should."""
    tracked = set(run("git", "-C", ROOT, "ls-files").split("\n")) - {""}
    with tarfile.open(sdist) as archive:
        files = {name.name.partition("/")[2] for name in archive.getmembers() if name.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    if faults := faults_of_sdist(files, tracked) + faults_of_wheel(packed, tracked):
        raise SystemExit("\n".join(faults))


def install(wheel: Path, environment: Path) -> float:
    """Seconds that pip takes to install the wheel, with the versions of constraints.txt, in a new environment."""
    run(sys.executable, "-m", "venv", environment)
    start = time.perf_counter()
    run(environment / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return time.perf_counter() - start


def use(environment: Path, directory: Path) -> None:
    """Run the commands in an empty directory, with nothing of this checkout in reach."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {"PATH": f"{environment / 'bin'}:{clean['PATH']}", "HF_HUB_OFFLINE": "1"}
    for command in COMMANDS:
        print(command, flush=True)
        run("sh", "-c", command, cwd=directory, env=clean)
    if missing := [name for name in MADE if not (directory / name).is_file()]:
        raise SystemExit(f"not made: {', '.join(missing)}")


def sizes(environment: Path) -> dict[str, float]:
    """Megabytes of each installed distribution, pip and the like left out."""
    code = (
        "import importlib.metadata as m, json, os\n"
        "place = lambda d, f: os.path.join(d.locate_file(''), str(f))\n"
        "size = lambda d: sum(os.path.getsize(place(d, f)) for f in d.files or [] if os.path.isfile(place(d, f)))\n"
        "print(json.dumps({d.name: size(d) / 1e6 for d in m.distributions()}))"
    )
    told = json.loads(run(environment / "bin" / "python", "-c", code))
    return {name: size for name, size in told.items() if name not in ("pip", "setuptools")}


def print_table(taken: dict[str, float], seconds: float) -> None:
    """Megabytes by distribution, the largest first, torch apart."""
    rest = {name: size for name, size in taken.items() if name != "torch"}
    largest = sorted(rest, key=rest.__getitem__, reverse=True)[:_TOLD]
    print("| package | MB |\n|---|---|")
    print(f"| torch | {taken['torch']:.0f} |")
    print("".join(f"| {name} | {rest[name]:.0f} |\n" for name in largest), end="")
    others = [size for name, size in rest.items() if name not in largest]
    print(f"| {len(others)} others | {sum(others):.0f} |\n| all but torch | {sum(rest.values()):.0f} |")
    print(f"\ninstalled in {seconds:.0f} seconds")


def main() -> None:
    """Build, check, install, use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory of wheel and sdist")
    parser.add_argument("--table", action="store_true", help="tell megabytes and seconds")
    settings = parser.parse_args()
    for old in settings.output.glob("unmask-*"):
        old.unlink()
    wheel, sdist = build(settings.output)
    check(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        environment, directory = Path(folder) / "environment", Path(folder) / "empty"
        directory.mkdir()
        seconds = install(wheel, environment)
        use(environment, directory)
        if settings.table:
            print_table(sizes(environment), seconds)
    print(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB), {sdist.name} ({sdist.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
