"""Readers of the published formats: the published files themselves, and one line for every fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.errors import UserError
from unmask.tasks import Countdown, Sudoku

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SUDOKU_FILE, COUNTDOWN_FILE = SHARED / "4x4_test_sudoku.csv", SHARED / "countdown_cd3_test.jsonl"
published = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published files are not in {SHARED}")

HEADER = "Puzzle,Solution\n"
ROW = "0140432014020000,2143432114323214\n"


def sudoku(tmp_path: Path, content: str | bytes) -> Sudoku:
    path = tmp_path / "puzzles.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Sudoku(data=str(path))


def countdown(tmp_path: Path, content: str) -> Countdown:
    path = tmp_path / "puzzles.jsonl"
    path.write_text(content)
    return Countdown(max_number=100, data=str(path))


@published
def test_read_csv_reads_published_sudoku() -> None:
    task = Sudoku(data=str(SUDOKU_FILE))
    examples = task.examples("test", 1000, 0)
    assert len(examples) == 500
    assert examples[0].prompt == "3102200002100320"
    puzzles, answers = [e.prompt for e in examples], [e.solution for e in examples]
    assert task.metrics(puzzles, answers, puzzle=puzzles, solution=answers) == {
        "solved": [1.0] * 500,
        "correct_cells": [1.0] * 500,
    }
    assert task.examples("test", 7, 3) == examples[:7]


@published
def test_read_jsonl_reads_published_countdown() -> None:
    task = Countdown(max_number=100, data=str(COUNTDOWN_FILE))
    examples = task.examples("test", 1000, 0)
    assert len(examples) == 256
    assert examples[0].prompt == "30 100 93=23:"
    assert examples[0].columns == {"numbers": [30, 100, 93], "target": 23}
    columns = {name: [e.columns[name] for e in examples] for name in ("numbers", "target")}
    assert task.rewards([""] * 256, [e.solution for e in examples], **columns) == [1.0] * 256


@published
def test_countdown_file_needs_larger_numbers_than_the_default() -> None:
    with pytest.raises(UserError, match="line 1: a number of input is 30; choose an integer from 1 to 20"):
        Countdown(data=str(COUNTDOWN_FILE)).examples("test", 1, 0)


def test_sudoku_file_may_have_dropped_zeros_and_traces_of_spreadsheets(tmp_path: Path) -> None:
    content = "\ufeffPuzzle,Solution\r\n140432014020000,2143432114323214\r\n" + f'"{ROW[:16]}","{ROW[17:33]}"'
    for example in sudoku(tmp_path, content).examples("test", 10, 0):
        assert (example.prompt, example.solution) == ("0140432014020000", "2143432114323214")


def test_sudoku_data_replaces_the_test_split_only(tmp_path: Path) -> None:
    task = sudoku(tmp_path, HEADER + ROW)
    assert [example.prompt for example in task.examples("test", 5, 0)] == ["0140432014020000"]
    assert task.examples("train", 50, 0) == Sudoku().examples("train", 50, 0)
    assert task.examples("test_unseen_grids", 50, 0) == Sudoku().examples("test_unseen_grids", 50, 0)


def test_sudoku_train_leaves_out_puzzles_of_the_file(tmp_path: Path) -> None:
    trained = Sudoku().examples("train", 20, 0)
    rows = "".join(f"{example.prompt},{example.solution}\n" for example in trained)
    task = sudoku(tmp_path, HEADER + rows)
    assert not {e.prompt for e in task.examples("train", 200, 0)} & {e.prompt for e in trained}


def test_countdown_train_leaves_out_puzzles_of_the_file_in_any_order(tmp_path: Path) -> None:
    def orders(task: Countdown) -> set[str]:
        prompts = {example.prompt for example in task.examples("train", 1000, 0)}
        return prompts & {"2 3 4=9:", "2 4 3=9:", "3 2 4=9:", "3 4 2=9:", "4 2 3=9:", "4 3 2=9:"}

    path = tmp_path / "one.jsonl"
    path.write_text('{"input": "4,2,3", "output": "9"}')
    assert len(orders(Countdown(max_number=4, max_target=12))) > 1
    assert orders(Countdown(max_number=4, max_target=12, data=str(path))) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (HEADER, "no puzzle below the header"),
        ("puzzle,solution\n" + ROW, "line 1: the header is 'puzzle,solution'; write Puzzle,Solution"),
        (ROW, "line 1: the header is"),
        (HEADER + ROW + "\n" + ROW, "line 3: the line is empty"),
        (HEADER + ROW + ROW + "0140432014020000\n", "line 4: 1 values; write 2"),
        (HEADER + ROW.strip() + ",1\n", "line 2: 3 values"),
        (HEADER + "1" * 17 + ",2143432114323214\n", "line 2: Puzzle is '11111111111111111'; write 16 digits"),
        (HEADER + "0140432014020005,2143432114323214\n", "line 2: Puzzle is"),
        (HEADER + "1.40432E+14,2143432114323214\n", "line 2: Puzzle is"),
        (HEADER + "0140432014020000,214343211432321\n", "line 2: Solution is '214343211432321'"),
        (HEADER + "0140432014020000,214343211432321٤\n", "line 2: Solution is"),
        (HEADER + "0140432014020000,2143432114323211\n", "line 2: .* does not solve"),
        (HEADER + "0140432014020000,0140432014020000\n", "line 2: .* does not solve"),
        (HEADER + "2143432114323214,2143432114323214\n", "line 2: .* no empty cell"),
        (HEADER + '"' + "0" * 200_000 + '",1\n', "line 2: not comma-separated values"),
    ],
)
def test_read_csv_refuses_faulty_sudoku_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sudoku(tmp_path, content).examples("test", 1, 0)
    assert "puzzles.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the line is empty"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "wrong keys; write an object with input, output"),
        ('{"input": "1,2,3"}', "wrong keys"),
        ('{"input": "1,2,3", "output": "6", "more": "1"}', "wrong keys"),
        ('{"input": "1,2,3", "output": 6}', "output is 6; write it as text"),
        ('{"input": "1,2,x", "output": "6"}', "input is '1,2,x'; write integers"),
        ('{"input": "1,2,٣", "output": "6"}', "write integers"),
        ('{"input": "1,2,-3", "output": "6"}', "write integers"),
        ('{"input": "1,2,3", "output": ""}', "output is ''"),
        ('{"input": "1,2,3,4", "output": "6"}', "4 numbers and 1 targets; write 3 and 1"),
        ('{"input": "1,2,3", "output": "6,7"}', "3 numbers and 2 targets"),
        ('{"input": "1,2,101", "output": "6"}', "a number of input is 101; choose an integer from 1 to 100"),
        ('{"input": "1,2,3", "output": "101"}', "output is 101"),
        ('{"input": "1,1,1", "output": "50"}', "no expression of 1,1,1 is 50"),
    ],
)
def test_read_jsonl_refuses_faulty_countdown_files(tmp_path: Path, line: str, message: str) -> None:
    good = '{"input": "1,2,3", "output": "6"}\n'
    with pytest.raises(UserError, match=f"puzzles.jsonl, line 2: .*{message}") as caught:
        countdown(tmp_path, good + line + "\n" + good).examples("test", 1, 0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_read_text_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nothing\.csv"):
        Sudoku(data=str(tmp_path / "nothing.csv")).examples("test", 1, 0)
    with pytest.raises(UserError, match="cannot read"):
        Countdown(data=str(tmp_path)).examples("train", 1, 0)
