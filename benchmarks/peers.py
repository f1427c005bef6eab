"""Published code, run from checkouts that the user names: functions are loaded from its own files, none is kept here.

What a file imports is given from outside, for most of it (TRL, wandb, OmegaConf) is not needed by the functions that
are timed. One stand-in is ours: `selective_log_softmax` of TRL, which MDPO imports.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
import torch.nn.functional as functional
from accelerate.utils import set_seed

from unmask.denoisers.base import Denoiser
from unmask.denoisers.formats.llada import LLADA
from unmask.errors import UserError

_SOURCES = {  # what each is, and a file by which a checkout is known
    "llada": ("LLaDA (arXiv 2502.09992)", "generate.py"),
    "d1": ("d1 (arXiv 2504.12216)", "diffu-grpo/diffu_grpo_trainer.py"),
    "fast_dllm": ("Fast-dLLM (arXiv 2505.22618)", "llada/generate.py"),
    "mdpo": ("MDPO (arXiv 2508.13148)", "src/open_r1/mdpo/mdpo_trainer.py"),
    "spg": ("SPG (arXiv 2510.09541)", "spg/spg_trainer.py"),
    "dllm_rl": ("dLLM-RL (arXiv 2509.06949)", "train/rl_llada.py"),
}


@dataclass(frozen=True, kw_only=True)
class Checkouts:
    """Where the published code lies."""

    llada: Path
    d1: Path
    fast_dllm: Path
    mdpo: Path
    spg: Path
    dllm_rl: Path

    def __post_init__(self) -> None:
        for field in fields(self):
            title, file = _SOURCES[field.name]
            if not (getattr(self, field.name) / file).is_file():
                raise UserError(
                    f"--{field.name.replace('_', '-')} {getattr(self, field.name)} has no {file}: "
                    f"give the directory of a checkout of the code of {title}"
                )


# ---- functions of a file ----


def load_functions(path: Path, *names: str, **namespace: Any) -> SimpleNamespace:
    """Functions of a file by their names (methods, and functions inside functions, too), compiled as they stand.

    They see torch, numpy and the `namespace`, and each other. Annotations and TRL's decorator, which need libraries
    that the functions do not, are left out. Raises UserError for a name that the file lacks.
    """
    tree = ast.parse(path.read_text(), str(path))
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names}
    if missing := set(names) - set(found):
        raise UserError(f"{path} has no function {', '.join(sorted(missing))}: give a checkout that does")
    for node in found.values():
        _strip(node)
    module = ast.Module(body=list(found.values()), type_ignores=[])
    scope: dict[str, Any] = {
        "torch": torch,
        "np": numpy,
        "F": functional,
        "dists": torch.distributions,
        "set_seed": set_seed,
        "selective_log_softmax": selective_log_softmax,
    }
    scope |= namespace
    exec(compile(module, str(path), "exec"), scope)  # noqa: S102 - code that the user names, to be timed
    return SimpleNamespace(**{name: scope[name] for name in names})


def _strip(function: ast.FunctionDef) -> None:
    """Remove annotations of arguments and results, and the decorators other than torch's."""
    function.decorator_list = [node for node in function.decorator_list if "torch" in ast.unparse(node)]
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None


def as_self(functions: SimpleNamespace, **attributes: Any) -> SimpleNamespace:
    """A stand-in for the trainer whose methods they are, with what its methods read."""
    trainer = SimpleNamespace(
        control=SimpleNamespace(should_evaluate=False),
        accelerator=SimpleNamespace(gather_for_metrics=lambda value: value),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _step=0,
        num_iterations=1,
        beta=0.0,
    )
    vars(trainer).update({name: partial(method, trainer) for name, method in vars(functions).items()})
    vars(trainer).update(attributes)
    return trainer


def selective_log_softmax(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """log softmax at one index a position: ours, in place of TRL's helper, which is not installed."""
    return logits.gather(-1, index[..., None])[..., 0] - logits.logsumexp(-1)


# ---- Fast-dLLM: its own network and its samplers ----


def _fast_dllm_package(checkout: Path) -> types.ModuleType:
    """Its modelling module, whose imports are relative to a package."""
    name = "fast_dllm_model"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / "llada" / "model")]
        sys.modules[name] = package
    if importlib.util.find_spec("einops") is None:  # read by a kind of block that LLaDA has not
        sys.modules["einops"] = types.ModuleType("einops")
        sys.modules["einops"].rearrange = None  # type: ignore[attr-defined]
        try:
            return importlib.import_module(f"{name}.modeling_llada")
        finally:
            del sys.modules["einops"]
    return importlib.import_module(f"{name}.modeling_llada")


def fast_dllm_network(checkout: Path, denoiser: Denoiser) -> Callable[..., Any]:
    """Fast-dLLM's network with the weights of a toy, which it shares."""
    modelling, config = _fast_dllm_package(checkout), denoiser.model.config
    network = modelling.LLaDAModel(
        modelling.ModelConfig(
            d_model=config.hidden_size,
            n_heads=config.num_attention_heads,
            n_layers=config.num_hidden_layers,
            mlp_hidden_size=config.intermediate_size,
            max_sequence_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            embedding_size=config.vocab_size,
            rope_theta=config.rope_parameters["rope_theta"],
            rms_norm_eps=config.rms_norm_eps,
            init_device="cpu",
            weight_tying=False,
            attention_dropout=0.0,
            residual_dropout=0.0,
            embedding_dropout=0.0,
            **LLADA.fixed,
        ),
        init_params=False,
    )
    network.load_state_dict(_their_names(denoiser, network), assign=True)
    return _FastDLLM(network.eval())


def _their_names(denoiser: Denoiser, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Our weights under the names of LLaDA's layout."""
    ours = denoiser.model.state_dict()
    return {name: ours[_our_name("model." + name)] for name in network.state_dict()}


def _our_name(name: str) -> str:
    for pattern, ours in LLADA.renaming.items():
        name = re.sub(pattern, ours, name)
    return name


class _FastDLLM:
    """Their network as their samplers call it; `replace_position` is the same in all rows, and they read one row."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.device = network, torch.device("cpu")

    def __call__(self, x: torch.Tensor, replace_position: torch.Tensor | None = None, **options: Any) -> Any:
        first = None if replace_position is None else replace_position[:1]
        output = self.network(x, replace_position=first, **options)
        return SimpleNamespace(logits=output.logits, past_key_values=output.attn_key_values)


class _TorchOfRows:
    """torch, but `full((1, n), ...)` makes as many rows as `rows`: published for a batch of one, run for more."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def full(self, size: tuple[int, int], value: int, **options: Any) -> torch.Tensor:
        """The canvas."""
        return torch.full((self.rows, size[1]), value, **options)


def fast_dllm_samplers(checkout: Path, rows: int) -> SimpleNamespace:
    """Their three samplers, for a batch of so many rows."""
    return load_functions(
        checkout / "llada" / "generate.py",
        "add_gumbel_noise",
        "get_num_transfer_tokens",
        "get_transfer_index",
        "generate",
        "generate_with_prefix_cache",
        "generate_with_dual_cache",
        torch=_TorchOfRows(rows),
    )
