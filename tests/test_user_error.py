"""The text of a UserError is one line that any terminal can show, whatever value it names."""

import pytest

from unmask.errors import UserError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("train.max_steps is 0: give more", "train.max_steps is 0: give more"),
        ("a\nb\r\x1b[2J", r"a\nb\r\x1b[2J"),
        ("lone \ud800 and \u202e", r"lone \ud800 and \u202e"),
        ("größer, 数字", "größer, 数字"),
        ("", ""),
    ],
)
def test_user_error_shows_its_text_in_one_line(message, shown):
    assert str(UserError(message)) == shown
    shown.encode()


def test_user_error_of_a_long_value_keeps_beginning_and_mend():
    line = str(UserError(f"value is {'9' * 10**6}: give less"))
    assert len(line) == 1503
    assert line.startswith("value is 999")
    assert line.endswith("999: give less")
    assert "9...9" in line
