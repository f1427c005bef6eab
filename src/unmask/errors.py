"""The one error a user is meant to read: a line that names the value and the mend."""


class UserError(ValueError):
    """Input that cannot be used. The command prints it as one line and ends with exit code 2."""
