from __future__ import annotations

from pathlib import Path

import pytest

from unmask.errors import UserError
from unmask.report.metrics import MetricsLog, MetricsReader, read_metrics

ROWS = [{"step": step, "reward": step / 7, "note": "é\u2028\n"} for step in range(6)]


def _write(path: Path, rows: list[dict[str, object]], keep_bytes: int | None = None) -> int:
    with MetricsLog(path, keep_bytes) as log:
        for row in rows:
            log.write(row)
        return log.position()


def test_read_metrics_gives_records_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    assert _write(path, ROWS) == path.stat().st_size
    assert read_metrics(path) == ROWS


def test_metrics_log_writes_each_line_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    log.close()


def test_metrics_log_resumed_from_a_checkpoint_leaves_the_same_bytes(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    _write(whole, ROWS)
    position = _write(resumed, ROWS[:3])
    _write(resumed, [{"step": 3, "reward": -1.0}, {"step": 4}])
    resumed.write_bytes(resumed.read_bytes() + b'{"step": 5, "rew')
    assert _write(resumed, ROWS[3:], keep_bytes=position) == whole.stat().st_size
    assert resumed.read_bytes() == whole.read_bytes()


def test_metrics_log_without_a_position_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, ROWS[:2])
    _write(path, ROWS[2:])
    assert read_metrics(path) == ROWS


def test_metrics_log_refuses_a_file_shorter_than_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    position = _write(path, ROWS[:1])
    with pytest.raises(UserError, match=rf"{position} bytes .* saved at {position + 1}"):
        MetricsLog(path, keep_bytes=position + 1)


def test_metrics_log_writes_numbers_that_are_not_finite_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, [{"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}}])
    assert path.read_text() == '{"a": null, "b": [null, 1.5], "c": {"d": null}}\n'


@pytest.mark.parametrize("bad", [b'{"step": 2', b"[1]", b"\xff"])
def test_read_metrics_names_a_malformed_line(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad)
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        read_metrics(path)


def test_read_metrics_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_read_metrics_of_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    assert read_metrics(path) == []


def test_metrics_reader_reads_what_was_added_and_keeps_the_wanted_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, {"step", "reward"}.__contains__)
    kept = [{name: row[name] for name in ("step", "reward")} for row in ROWS]
    _write(path, ROWS[:4])
    assert reader.rows() == kept[:4]
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))  # what was read is not read again
    _write(path, ROWS[4:])
    assert reader.rows() == kept
    with path.open("ab") as file:
        file.write(b'{"step": 6')  # as of a log that is writing
    assert reader.rows() == kept
    with path.open("ab") as file:
        file.write(b"}\n\n[]\n")
    with pytest.raises(UserError, match="line 9 is not a JSON object"):
        reader.rows()
    assert reader.rows()[-1] == {"step": 6}
