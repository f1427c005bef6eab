"""Intervals by hand, paired draws, and the table's figures."""

import json
from itertools import combinations

import pytest

from unmask.cli.main import main
from unmask.evaluation.statistics import paired_interval, pass_at, solved_summary, wilson_interval


def test_wilson_interval_is_that_by_hand():
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_paired_interval_is_that_by_hand():
    gain, low, high = paired_interval([0, 0, 1, 1], [1, 0, 1, 1])
    assert gain == 0.25
    assert (low + high) / 2 == pytest.approx(0.25)
    assert high - low == pytest.approx(2 * 1.959964 * 0.25, abs=1e-5)


def test_paired_interval_without_change_has_no_width():
    assert paired_interval([1.0, 0.0], [1.0, 0.0]) == (0.0, 0.0, 0.0)


def test_solved_summary_interval_holds_the_rate():
    summary = solved_summary([1.0, 0.0, 0.0, 1.0])
    assert summary["solved"] == 0.5
    assert summary["solved_low"] < 0.5 < summary["solved_high"]


def test_pass_at_is_the_mean_over_all_choices_of_k():
    for samples, right, k in ((4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 1), (8, 7, 4)):
        outcomes = [1] * right + [0] * (samples - right)
        choices = list(combinations(outcomes, k))
        assert pass_at(k, right, samples) == pytest.approx(sum(map(max, choices)) / len(choices))


def evaluated(tmp_path, *flags):
    """Rows of `unmask evaluate` on few puzzles, and what it printed."""
    output = tmp_path / "table.json"
    assert main(["evaluate", "--examples", "24", "--threads", "1", *flags, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_evaluation_table_has_every_length_and_number_of_steps(tmp_path):
    flags = ("--task", "arithmetic", "--model", "embedded:arithmetic", "--lengths", "8,16", "--steps", "/4,/1,2")
    rows = evaluated(tmp_path, *flags)
    assert [(row["tokens"], row["steps"]) for row in rows] == [(8, 2), (8, 8), (8, 2), (16, 4), (16, 16), (16, 2)]
    assert [row["tokens_a_step"] for row in rows] == [4, 1, 4, 4, 1, 8]


def test_tokens_a_step_differs_between_adaptive_rules(tmp_path):
    slow, quick = evaluated(tmp_path, "--unmasking", "threshold,factor", "--steps", "4")
    assert 1 < slow["tokens_a_step"] < 16
    assert slow["tokens_a_step"] != quick["tokens_a_step"]


def test_mean_metrics_of_several_samples_give_pass_at_k(tmp_path):
    (row,) = evaluated(tmp_path, "--steps", "4", "--samples", "4", "--temperature", "1")
    assert row["solved"] < row["pass@2"] < row["pass@4"] < 1
    assert "pass@1" not in row  # it is the solve rate
    (again,) = evaluated(tmp_path, "--steps", "4", "--samples", "4", "--temperature", "1", "--batch", "8")
    assert again == row


def test_evaluation_table_in_bf16_is_nearly_that_in_fp32(tmp_path):
    exact, coarse = (evaluated(tmp_path, "--steps", "4", "--precision", precision)[0] for precision in ("fp32", "bf16"))
    assert exact != coarse
    assert exact["correct_cells"] == pytest.approx(coarse["correct_cells"], abs=0.1)


def test_mean_metrics_tell_over_denoised_where_asked(tmp_path, capsys):
    (row,) = evaluated(tmp_path, "--steps", "4", "--over-denoising", "true", "--examples", "200")
    trainer_like = evaluated(tmp_path, "--steps", "1", "--over-denoising", "true")[0]
    assert 0 < row["over_denoised"] < 1 - row["solved"]
    assert trainer_like["over_denoised"] == 0  # the only step is the end
    capsys.readouterr()
    assert main(["evaluate", "--over-denoising", "true", "--unmasking", "threshold"]) == 2
    assert "cannot be recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "mend"),
    [
        (("--samples", "4"), "raise --temperature"),
        (("--lengths", "8,all"), "such as 128,256"),
        (("--steps", "/0"), "such as 4,16 or /2,/1"),
        (("--lengths", "16", "--steps", "/3", "--block-length", "4"), "multiple"),
    ],
)
def test_evaluation_table_refuses_settings_that_do_not_fit(flags, mend, capsys):
    assert main(["evaluate", *flags]) == 2
    assert mend in capsys.readouterr().err
