"""A mark for tests that run programs, which need bubblewrap: where it cannot be had they skip, and say why."""

import pytest

from unmask.errors import UserError
from unmask.verifiers.sandbox import check_sandbox


def _without() -> str:
    try:
        check_sandbox()
    except UserError as error:
        return str(error)
    return ""


WITHOUT = _without()
needs_sandbox = pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)
