"""An exported directory on its way to the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from unmask.errors import UserError
from unmask.report.progress import phase

_NAME = re.compile(r"[^/]+/[^/]+")


def check_push(repository: str) -> None:
    """Raise UserError where `repository` is no ORG/NAME, or nothing could be sent: no token, or the Hub is off."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"--push {repository!r} cannot be a repository of the Hub ({detail}): give ORG/NAME") from None
    if not _NAME.fullmatch(repository):
        raise UserError(f"--push is {repository!r}: give ORG/NAME, with your user name or organisation before the /")
    if is_offline_mode():
        raise UserError("--push needs the Hub, and HF_HUB_OFFLINE is set: unset it, or leave --push out")
    if get_token() is None:
        raise UserError("--push needs a token of the Hub: run hf auth login, or leave --push out")


def push(directory: Path, repository: str) -> str:
    """Create the repository where there is none and send all files in one commit; where it is to be seen.

    Raises UserError, with the command that sends it later, where the Hub does not take it.
    """
    token = get_token()
    hub = HfApi(token=token)
    disable_progress_bars()
    try:
        with phase(f"sending {directory} to {repository}"):
            hub.create_repo(repository, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=directory, commit_message="Export of unmask")
    except (OSError, HTTPError, RuntimeError, ValueError) as error:  # the Hub's, the network's, xet's, a bad answer
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        detail = detail.replace(token, "***") if token else detail
        raise UserError(
            f"{directory} is whole, and the Hub did not take it ({detail[:300]}): `hf upload {repository} "
            f"{quote(str(directory))}` sends it later"
        ) from None
    return f"{hub.endpoint}/{repository}"
