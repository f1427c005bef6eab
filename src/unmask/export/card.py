"""The model card of an exported checkpoint: where it comes from, what was measured, how to load and to cite it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from unmask import __version__
from unmask.denoisers.directories import EMBEDDED
from unmask.denoisers.intact import read_json
from unmask.evaluation.statistics import figure_label
from unmask.export.citation import bibtex, papers
from unmask.export.evaluation import Measured, Rate
from unmask.export.source import ExportSource
from unmask.settings.inputs import shareable_document, without_directories

CURVE, ADAPTER_FOLDER = "curve.png", "adapter"
_EMBEDDED_LICENCE = "apache-2.0"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A masked diffusion language model: it fills masked tokens over several denoising steps.
{% for line in origin %}
* {{ line }}{% endfor %}
{% if curve %}
![Reward and solve rates over the run](curve.png)
{% endif %}{% if table %}
## Evaluation
{{ table }}

Held-out examples{{ counts }}; in brackets 95 % intervals: of rates Wilson's, of gains Tango's over the same examples.
{% endif %}
## How to load it
{{ loading }}
{% if recipe %}
## Recipe
Every setting of the training, as `unmask train --recipe` takes it; of files it has the names alone.

{{ recipe }}
{% endif %}
## Citation
{{ citation }}
"""


def model_card(source: ExportSource, name: str, measured: Sequence[Measured], *, has_curve: bool) -> ModelCard:
    """The card of a checkpoint that is called `name` there; whatever its settings hold is shown as text."""
    document = None if source.recipe is None else shareable_document(source.recipe)
    card: ModelCard = ModelCard.from_template(
        _data(source, name, measured),
        template_str=_TEMPLATE,
        name=_span(name),
        origin=_origin(source),
        curve=has_curve,
        table=_table(measured),
        counts=_counts(source, measured),
        loading=_loading(source, name),
        recipe=None if document is None else _fenced(tomli_w.dumps(document), "toml"),
        citation=_fenced(bibtex(source), "bibtex"),
    )
    return card


# ---- the header, for machines ----


def _data(source: ExportSource, name: str, measured: Sequence[Measured]) -> ModelCardData:
    base, trained = _base(source), source.trained
    results = []
    if trained is not None:
        task = _line(trained.task.name)
        for each in measured:
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=task,
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_name=f"{each.counted}, {_line(figure_label(each.name))}",
                    metric_value=each.after.value,
                    metric_args={"interval_95": [each.after.low, each.after.high]},
                )
            )
    return ModelCardData(
        model_name=_line(name),
        base_model=base if base is not None and _HUB_NAME.fullmatch(base) else None,
        license=_licence(base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["unmask", "masked-diffusion", *(() if trained is None else ("reinforcement-learning",))],
        eval_results=results or None,
    )


def _base(source: ExportSource) -> str | None:
    """The model that training began with; of a local directory the name alone."""
    model = None if source.recipe is None else source.recipe.model
    return None if model is None else _line(without_directories(model))


def _licence(base: str | None) -> str | None:
    return _EMBEDDED_LICENCE if base is not None and base.startswith(EMBEDDED) else None


# ---- the text, for people ----


def _origin(source: ExportSource) -> list[str]:
    base, trained = _base(source), source.trained
    lines = [] if base is None else [f"base model: {_span(base)}"]
    if _licence(base) is None:
        lines.append(
            "licence: that of the base model; name it as `license` at the top of this page before you share it"
        )
    else:
        lines.append(f"licence: {_EMBEDDED_LICENCE}")
    if trained is not None:
        for paper in papers(trained.method):
            lines.append(f"method: {_span(paper.name)}, [arXiv {paper.number}]({paper.url})")
        lines.append(f"task: {_span(trained.task.name)}; {source.step} of {trained.train.max_steps} training steps")
    if source.adapters is not None:
        rank, alpha = source.lora
        lines.append(f"low-rank adapters of rank {rank} (alpha {alpha}) were trained; the weights here hold them")
    return [*lines, f"trained and exported by unmask {__version__}"]


def _table(measured: Sequence[Measured]) -> str:
    if not measured:
        return ""
    rows = ["| measured | before | after | gain |", "|---|---|---|---|"]
    for each in measured:
        before, gain = (_rate(rate, sign) for rate, sign in ((each.before, ""), (each.gain, "+")))
        label = _span(f"{figure_label(each.name)}: {each.counted}")
        rows.append(f"| {label} | {before} | {_rate(each.after, '')} | {gain} |")
    return "\n".join(rows)


def _counts(source: ExportSource, measured: Sequence[Measured]) -> str:
    """How many held-out examples the figures are of, where that is known; else at most how many."""
    known = {each.examples for each in measured}
    if len(known) == 1 and (number := known.pop()) is not None:
        return f", {number:,}"
    return "" if source.trained is None else f", at most {source.trained.evaluation.examples:,}"


def _rate(rate: Rate | None, sign: str) -> str:
    if rate is None:
        return "not measured"
    interval = "" if rate.low is None else f" [{rate.low:{sign}.1%}, {rate.high:{sign}.1%}]"
    return f"{rate.value:{sign}.1%}{interval}"


def _loading(source: ExportSource, name: str) -> str:
    config = read_json(source.directory / "config.json")
    brought: dict[str, Any] = config.get("auto_map") or {}
    loader = next((each for each in ("AutoModelForCausalLM", "AutoModel") if each in brought), "AutoModelForCausalLM")
    if any("MaskedLM" in architecture for architecture in config.get("architectures") or ()):
        loader = "AutoModelForMaskedLM"
    options = ", trust_remote_code=True" if brought else ""
    lines = [
        f"from transformers import {loader}, AutoTokenizer",
        "",
        f'directory = "{_quoted(name)}"  # or org/name on the Hub',
        f"model = {loader}.from_pretrained(directory{options})",
        f"tokenizer = AutoTokenizer.from_pretrained(directory{options})",
    ]
    parts = ["With transformers:", _fenced("\n".join(lines), "python")]
    if source.adapters is not None:
        lines = [
            "from peft import PeftModel",
            "",
            f"base = {loader}.from_pretrained(...)  # the base model named above",
            f'model = PeftModel.from_pretrained(base, "{_quoted(name)}", subfolder="{ADAPTER_FOLDER}")',
        ]
        parts += ["The adapters alone, on the base model, with peft:", _fenced("\n".join(lines), "python")]
    shown = _quoted(name)
    command = f'unmask sample --model "{shown}"\nunmask evaluate --model "{shown}"'
    return "\n\n".join([*parts, "With unmask, whose sampler fills the masks:", _fenced(command, "")])


# ---- escaping ----


def _line(text: str) -> str:
    """The text in one line that any terminal can show."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _quoted(text: str) -> str:
    """The text within double quotes of Python or a shell."""
    return re.sub(r'(["\\$`])', r"\\\1", _line(text))


def _span(text: str) -> str:
    """Markdown that shows the text as it is, within a line or a cell of a table."""
    line = _line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if "`" in line else ""
    return f"{ticks}{padding}{line}{padding}{ticks}".replace("|", "\\|")


def _fenced(text: str, language: str) -> str:
    """A block of Markdown that shows the text as it is, whatever lines it has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
