"""What a page is told of runs: their figures, settings beside defaults, packed records, comparisons."""

import json
import struct
import zlib

import numpy as np
import pytest
import tomli_w

from helpers.run_directory import ODD, group, write_run
from unmask.errors import UserError
from unmask.evaluation.statistics import paired_interval
from unmask.page.runs import blobs_of, distinct_names, packed, page_of, run_of
from unmask.settings.commands import PretrainRecipe
from unmask.settings.reader import document_of


def test_run_of_tells_figures_warnings_and_what_differs(tmp_path):
    run = write_run(tmp_path / "run", method={"name": "mdpo", "beta": 0.5}, rollout={"prompts": 3})
    shown = run_of(run)
    assert (shown["method"], shown["task"], shown["paper"]) == ("mdpo", "sudoku", "2508.13148")
    assert shown["training"]["step"] == list(range(1, 21))
    assert shown["training"]["entropy"][3] == 0.25
    assert shown["evaluations"]["step"] == [0, 10, 20]
    assert shown["warnings"][0]["step"] == 7
    changed = {row["path"]: (row["value"], row["default"]) for row in shown["settings"] if row["differs"]}
    assert changed == {"method.beta": (0.5, 0.02), "rollout.prompts": (3, 16), "train.max_steps": (20, 300)}
    assert shown["record"] == {"step": [1, 5, 10, 15, 20], "evaluation": [0, 10, 20]}
    json.dumps(shown, allow_nan=False)


def test_run_of_a_run_that_still_trains_has_no_summary(tmp_path):
    shown = run_of(write_run(tmp_path / "run", done=False))
    assert (shown["summary"], shown["evaluations"]["step"]) == ({}, [0, 10])


def test_run_of_runs_no_code_of_the_users(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
    (run / "recipe.toml").write_text(tomli_w.dumps({"method": {"name": f"{tmp_path}/mine.py:Mine", "beta": 1.0}}))
    settings = run_of(run)["settings"]
    assert [(row["path"], row["default"], row["differs"]) for row in settings] == [
        ("method", None, False),
        ("method.beta", None, False),
    ]


def test_page_of_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no recipe\.toml"):
        page_of([tmp_path])
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        page_of([tmp_path])
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(document_of(PretrainRecipe())))
    with pytest.raises(UserError, match="is of unmask pretrain"):
        page_of([tmp_path])


def unpack(blob):
    """As data.js does."""
    content = zlib.decompress(blob)
    (length,) = struct.unpack("<I", content[:4])
    assert (length + 4) % 8 == 0
    heads = json.loads(content[4 : 4 + length])
    return [
        (
            head["about"],
            {
                name: np.frombuffer(content, dtype=kind, count=int(np.prod(shape)), offset=4 + length + place).reshape(
                    shape
                )
                for name, (kind, shape, place) in head["arrays"].items()
            },
        )
        for head in heads
    ]


def test_packed_record_is_read_back_and_aligned(tmp_path):
    groups = [group(vocabulary=ODD, guesses=True), group(samples=3, columns=7, remasking=True)]
    for made, (about, arrays) in zip(groups, unpack(packed(groups)), strict=True):
        assert about == made.about
        assert arrays.keys() == made.arrays.keys()
        for name, array in made.arrays.items():
            assert arrays[name].dtype == array.dtype
            assert (arrays[name] == array).all()
    run = write_run(tmp_path / "run")
    assert list(blobs_of(run)) == [f"step_{step}" for step in (1, 5, 10, 15, 20)] + [
        f"evaluation_{step}" for step in (0, 10, 20)
    ]


def test_page_of_several_runs_groups_seeds_and_pairs_examples(tmp_path):
    first = [write_run(tmp_path / f"a{seed}", seed=seed, gain=0.1) for seed in (0, 1)]
    other = write_run(tmp_path / "b", method={"name": "mdpo"}, gain=0.6)
    compared = page_of([*first, other])["comparison"]
    assert [(each["runs"], each["name"]) for each in compared["groups"]] == [
        ([0, 1], "dispo, 2 seeds"),
        ([2], "mdpo, seed 0"),
    ]
    differences = {row["path"]: row["values"] for row in compared["differences"]}
    assert differences["method"] == ["dispo", "dispo", "mdpo"]
    assert differences["train.seed"] == [0, 1, 0]
    assert differences["method.alpha"] == [0.5, 0.5, None]
    assert "rollout.prompts" not in differences
    (gains,) = compared["gains"]
    rates = [json.loads((run / "after.json").read_text())["greedy_4/solved"] for run in (first[0], other)]
    expected = dict(zip(("gain", "low", "high"), paired_interval(*rates), strict=True))
    assert gains["runs"][1] == expected
    assert expected["low"] > 0


def test_distinct_names_are_paths_where_directories_are_called_alike(tmp_path):
    alike = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert distinct_names(alike) == [str(run) for run in alike]
    assert distinct_names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
