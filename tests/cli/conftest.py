"""What several tests of commands share."""

import pytest

from helpers.before_torch import Commands


@pytest.fixture(scope="session")
def commands():
    """Runs commands until torch would be imported."""
    with Commands() as commands:
        yield commands
