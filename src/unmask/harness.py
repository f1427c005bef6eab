"""lm-evaluation-harness's own command, which knows the model `unmask` besides its own."""

from __future__ import annotations

import sys

from unmask.cli.environment import prepare
from unmask.errors import UserError


def main() -> int:
    """Run `lm-eval` on the command line; 0, or 2 after an error that the user can mend."""
    try:
        import unmask.evaluation.lm_eval.model  # noqa: F401  (registers the model)

        prepare(None)
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"unmask: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
