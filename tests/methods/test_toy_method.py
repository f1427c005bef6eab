"""A method of the user's, with pieces of its own, is one file outside the package: helpers/toy_method.py.

The laws of all methods hold for it in test_conformance.py.
"""

from dataclasses import replace
from pathlib import Path

import torch

from helpers.small_run import SmallRun, settings_of
from helpers.toy_method import Halves, MeanOfSpan
from unmask.methods import METHODS
from unmask.methods.describe import Row, method_rows
from unmask.report.methods_page import print_method, section
from unmask.validation import load_named

FILE = Path(__file__).parents[1] / "helpers" / "toy_method.py"
TOY = load_named(f"{FILE}:Toy", "method")
ROW = Row(
    method="toy",
    rows="a random half of the completion, and the other half (share 0.5)",
    unit="sample",
    score="mean of span",
    advantage="centered",
    surrogate="ratio",
    with_gradient=2.0,
    without_gradient=(0.0, 2.0),
    frozen="old log-probs",
    paper="0000.00000",
    provenance="tests",
)


def test_method_of_a_file_is_in_no_table():
    assert TOY not in METHODS.values()
    assert "toy" not in METHODS
    assert TOY.unmasking is None


def test_method_rows_of_a_method_of_a_file():
    assert method_rows(TOY()) == [ROW]
    (row,) = method_rows(TOY(share=0.25))
    assert row.rows.endswith("(share 0.25)")


def test_print_method_of_a_file(capsys):
    print_method(TOY())
    printed = capsys.readouterr().out
    assert "Toy method. Provenance: written for the tests" in printed
    assert "--method.share" in printed
    assert "share of the first half" in printed
    page = section(TOY())
    assert page.startswith("## toy\n")
    assert "| `share` | `0.5` | share of the first half |" in page


def test_masking_and_likelihood_of_a_file_have_the_defaults_of_their_protocols():
    assert not Halves().reads_trajectory
    assert Halves().prompt_mask == (0.0, False)
    assert (MeanOfSpan().linear, MeanOfSpan().elementwise) == (True, False)


def test_method_of_a_file_is_trained(tmp_path):
    settings = settings_of(tmp_path, {"name": "diffu-grpo"}, train={"num_iterations": 2, "micro_batch": 4})
    run = SmallRun(replace(settings, method=TOY()))
    before = [weight.detach().clone() for weight in run.objective.denoiser.parameters()]
    run.sample()
    run.prepare()
    run.update()
    moved = [not torch.equal(old, new) for old, new in zip(before, run.objective.denoiser.parameters(), strict=True)]
    assert any(moved)
