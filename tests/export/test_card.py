"""The model card: readable by the Hub and by people, whatever a recipe holds."""

import json
import tomllib

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from helpers.finished_run import finished_run, summarise
from unmask.export.card import model_card
from unmask.export.citation import bibtex
from unmask.export.evaluation import measured_of
from unmask.export.source import find_source
from unmask.settings.inputs import shareable_document

HOSTILE = "</script><img src=x onerror=alert(1)>\n---\nlicense: evil\n---\n```\n# {{ card_data }} | ` \u202e</details>"


def card_of(run, name="solver"):
    source = find_source(str(run))
    return model_card(source, name, measured_of(source), has_curve=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "full")


def test_card_tells_base_method_paper_evaluation_and_how_to_load(run):
    card = card_of(run)
    assert card.data.license == "apache-2.0"
    assert {"unmask", "masked-diffusion", "reinforcement-learning"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.metric_value, result.metric_args) == (0.75, {"interval_95": [0.3, 0.95]})
    for said in (
        *("`embedded:sudoku`", "arXiv 2602.06462", "arXiv 2504.12216", "![Reward", "75.0% [30.0%, 95.0%]"),
        *("AutoModelForCausalLM.from_pretrained", "unmask sample --model", "@misc{dispo", "2 of 2 training steps"),
    ):
        assert said in card.text


def test_card_of_a_finished_run_has_the_gain_with_its_interval(tmp_path):
    run = finished_run(tmp_path / "run")
    summarise(run)
    assert "+25.0% [-10.0%, +50.0%]" in card_of(run).text
    assert "50.0% [30.0%, 95.0%] | 75.0% [30.0%, 95.0%]" in card_of(run).text


def test_card_counts_the_held_out_examples_where_they_are_known(run, tmp_path):
    assert "Held-out examples, at most 2,000; in" in card_of(run).text
    finished = finished_run(tmp_path / "run")
    summarise(finished)
    (finished / "after.json").write_text(
        json.dumps({"greedy_16/solved": [1.0, 1.0, 0.0], "greedy_16/parses": [1.0] * 3})
    )
    assert "Held-out examples, 3; in" in card_of(finished).text


def test_whatever_a_recipe_holds_is_shown_as_text(tmp_path):
    run = finished_run(tmp_path / "run", document={"chat": {"prefill": HOSTILE}})
    card_of(run, name="<b>x</b>|`y`").save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    assert not [token for each in tokens for token in (each, *(each.children or ())) if token.type.startswith("html")]
    assert sum(token.tag == "h1" for token in tokens if token.type == "heading_open") == 1
    (recipe,) = (token.content for token in tokens if token.type == "fence" and token.info == "toml")
    assert tomllib.loads(recipe)["chat"]["prefill"] == HOSTILE
    assert tomllib.loads(recipe) == shareable_document(find_source(str(run)).recipe)


def test_citation_names_the_method_s_papers_and_this_library(run):
    text = bibtex(find_source(str(run)))
    assert text.count("@misc{") == 2
    assert "eprint = {2602.06462}" in text
    assert "year = {2026}" in text
    assert "@software{unmask" in text
