"""`unmask oracle` prints a line for each method under each sampler, and nothing is cut off."""

from unmask.cli.main import main
from unmask.oracle.gradients import oracle_methods
from unmask.oracle.toy import SAMPLERS


def test_the_tables_fit_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("unmask.report.oracle_table._BATCHES", 3)
    assert main(["oracle", "--groups", "24", "--num-generations", "3", "--masks", "5"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    lines = [line.strip() for line in printed.splitlines()]
    for name in oracle_methods():
        assert sum(line.startswith(name + "  ") for line in lines) >= len(SAMPLERS)
    assert sum(line.startswith("spg, bad samples") for line in lines) == 1


def test_a_group_of_one_is_refused(capsys):
    assert main(["oracle", "--num-generations", "1"]) == 2
    assert "give 2 or more" in capsys.readouterr().err
