"""The one error a user is meant to read: a line that names the value and the mend; and what SIGTERM raises."""


class UserError(ValueError):
    """Input that cannot be used. The command prints it as one line and ends with exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, what is being done unwinds. The command ends with exit code 143."""
