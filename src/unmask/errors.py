"""The one error a user is meant to read: a line that names the value and the mend; and what SIGTERM raises."""

_BEGINNING, _END = 1000, 500  # characters of a longer message that are shown: the value's beginning, and the mend


class UserError(ValueError):
    """Input that cannot be used. The command prints it as one line and ends with exit code 2.

    Whatever value it names, its text is one line of at most 1,503 letters that any terminal can show.
    """

    def __str__(self) -> str:
        line = super().__str__()
        if len(line) > _BEGINNING + _END:
            line = f"{line[:_BEGINNING]}...{line[-_END:]}"
        return line if line.isprintable() else "".join(map(_shown, line))


def _shown(letter: str) -> str:
    """The letter, or its escape where it would end the line, steer a terminal or belongs to no text."""
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, what is being done unwinds. The command ends with exit code 143."""
