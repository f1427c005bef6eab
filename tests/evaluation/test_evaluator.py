"""The figures of `unmask evaluate`: lengths and steps, tokens a step, pass@k, over-denoising."""

import json

import pytest

from unmask.cli.main import main


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


def test_evaluation_table_names_the_steps_that_were_taken(tmp_path):
    rows = evaluated(tmp_path, "--steps", "16,128")
    assert [row["steps"] for row in rows] == [16, 16]
    assert rows[0] == rows[1]


def test_tokens_a_step_differs_between_adaptive_rules(tmp_path):
    slow, quick = evaluated(tmp_path, "--unmasking", "threshold,factor")  # a row each, whatever the numbers of steps
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
        (("--samples", "4"), "raise temperature"),
        (("--lengths", "8,all"), "such as 128,256"),
        (("--steps", "/0"), "such as 4,16 or /2,/1"),
        (("--lengths", "16", "--steps", "/3", "--block-length", "4"), "multiple"),
    ],
)
def test_evaluation_table_refuses_settings_that_do_not_fit(flags, mend, capsys):
    assert main(["evaluate", *flags]) == 2
    assert mend in capsys.readouterr().err
