"""Files are whole or absent after a crash, and a disk that refuses a write is told of in one line."""

import errno
import os

import pytest

from helpers.finished_run import finished_run
from helpers.full_disk import no_file_larger_than
from unmask.api.run import Run
from unmask.report import durable
from unmask.report.durable import DiskError, replace_durably, write_durably
from unmask.report.metrics import MetricsLog, read_metrics

MENDS = [
    (errno.ENOSPC, "No space left on device): free some room"),
    (errno.EROFS, "Read-only file system): make the file system writable"),
    (errno.EIO, "Input/output error): bring its disk back"),
]


@pytest.mark.parametrize(("number", "said"), MENDS)
def test_write_durably_leaves_what_was_there_where_the_system_refuses(number, said, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_durably(path, "before")

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "sync", refuse)
    with pytest.raises(DiskError) as error:
        write_durably(path, "after")
    assert str(error.value) == f"{path} cannot be written ({said}"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file.json", "before")]


def test_replace_durably_leaves_nothing_of_a_write_that_fails(tmp_path):
    def half(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replace_durably(tmp_path / "curve.png", half)
    assert list(tmp_path.iterdir()) == []


def test_write_durably_syncs_the_file_before_its_name_and_the_name_after(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(durable, "sync", lambda path: seen.append((path.name, (tmp_path / "file").exists())))
    write_durably(tmp_path / "file", "text")
    assert seen == [(".file.partial", False), (tmp_path.name, True)]


def test_a_shared_file_may_be_replaced_while_another_replaces_it(tmp_path):
    path = tmp_path / "report.html"

    def overtaken(temporary):
        temporary.write_text("first")
        replace_durably(path, lambda other: other.write_text("second"), shared=True)
        assert path.read_text() == "second"

    replace_durably(path, overtaken, shared=True)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.html", "first")]


@pytest.mark.parametrize("written", ["report.html", "curve.png"])
def test_run_writes_its_page_and_curve_while_another_process_does(written, tmp_path, monkeypatch):
    directory = finished_run(tmp_path / "run")
    run, sync = Run(directory), durable.sync

    def overtaken(path):  # as by another rank, once what is written stands under its temporary name
        monkeypatch.setattr(durable, "sync", sync)
        (run.report if written == "report.html" else run.curve)()
        sync(path)

    monkeypatch.setattr(durable, "sync", overtaken)
    path = (run.report if written == "report.html" else run.curve)()
    assert path == directory / written
    assert list(directory.glob(".*.partial")) == []


def test_metrics_log_keeps_whole_lines_where_the_disk_ends_within_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        with (
            no_file_larger_than(path.stat().st_size + 5),
            pytest.raises(DiskError, match="raise the limit of file sizes"),
        ):
            log.write({"step": 2, "text": "long" * 20})
        assert read_metrics(path) == [{"step": 1}]
        log.write({"step": 2})
        assert log.position() == path.stat().st_size
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("again", [False, True])
def test_metrics_log_that_is_gone_from_its_path_is_told_of(again, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        path.unlink()
        if again:
            path.write_text("another\n")
        with pytest.raises(DiskError, match="bring its disk back"):
            log.position()
