"""What is exported: a checkpoint, and what the run that made it tells. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from unmask.denoisers.digests import STATE, check_digests, read_state
from unmask.denoisers.directories import check_model, local_directory
from unmask.denoisers.intact import check_tensors, tensor_files
from unmask.errors import UserError
from unmask.settings.commands import PretrainRecipe
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe

ADAPTERS = "adapters.safetensors"  # as a run writes them, under the names of its network
# What loaders read beside the weights; everything else in a checkpoint is there to train on.
_READ_BY_LOADERS = (
    *("config.json", "generation_config.json", "*.safetensors.index.json", "tokenizer*.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", "*.py"),
)


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A checkpoint whose files are whole, with the run and recipe that made it where they are known.

    `step`: training steps that the checkpoint has; None where it says none.
    """

    directory: Path
    run: Path | None
    recipe: Recipe | PretrainRecipe | None
    step: int | None

    @property
    def files(self) -> list[Path]:
        """The files that loaders read: weights, settings, tokenizer, and code that came with the model."""
        texts = [path for path in self.directory.iterdir() if path.is_file() and _is_read(path.name)]
        return sorted({*texts, *tensor_files(self.directory)})

    @property
    def trained(self) -> Recipe | None:
        """The recipe, where the run was one of reinforcement learning."""
        return self.recipe if isinstance(self.recipe, Recipe) else None

    @property
    def adapters(self) -> Path | None:
        """The file of the adapters that were trained; None where all weights were."""
        path = self.directory / ADAPTERS
        return path if path.is_file() else None

    @property
    def lora(self) -> tuple[int, int]:
        """Rank and alpha of the adapters. Raises UserError where the recipe is gone that says them."""
        trained = self.recipe.train if isinstance(self.recipe, Recipe) else self.recipe
        if trained is None:
            raise UserError(
                f"{self.directory} has adapters, and no run around it whose recipe.toml says their scale: give a "
                "checkpoint in its run's directory"
            )
        return trained.lora_rank, trained.lora_alpha


def find_source(text: str) -> ExportSource:
    """The checkpoint that `text` names: its directory, or a run's, which means its newest one.

    Raises UserError where there is none, or a file that would be exported is damaged.
    """
    directory = local_directory(text)
    if (directory / "recipe.toml").is_file() and not (directory / "config.json").is_file():
        raise UserError(f"run {text!r} has no checkpoint yet: export it when one is written")
    check_model(directory, text)
    run = _run_of(directory)
    source = ExportSource(
        directory=directory,
        run=run,
        recipe=None if run is None else _recipe_of(run),
        step=read_state(directory)["step"] if (directory / STATE).is_file() else None,
    )
    _check_whole(source, text)
    return source


def _run_of(directory: Path) -> Path | None:
    """The run that a checkpoint lies in, or whose model lies beside its recipe."""
    folder = directory.absolute().parent
    places = (directory, folder.parent) if folder.name == "checkpoints" else (directory,)
    return next((place for place in places if (place / "recipe.toml").is_file()), None)


def _recipe_of(run: Path) -> Recipe | PretrainRecipe:
    document = read_recipe(str(run / "recipe.toml"))
    settings: type[Recipe] | type[PretrainRecipe] = Recipe if "method" in document else PretrainRecipe
    return build(settings, document)


def _check_whole(source: ExportSource, text: str) -> None:
    names = {path.name for path in source.files}
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{text!r} has no *.safetensors file: give the directory of a run or of a checkpoint")
    if "tokenizer.json" not in names:
        raise UserError(f"{text!r} has no tokenizer.json: copy it from the model's base checkpoint")
    if source.adapters is not None:
        check_tensors(source.adapters)
        _ = source.lora
    if source.step is not None:
        check_digests(source.directory, reads=lambda name: name in names or name in (ADAPTERS, STATE))


def _is_read(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _READ_BY_LOADERS)
