"""The blocks of docs/python.md run as pasted, each in an empty directory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("text", BLOCKS, ids=["trainer", "recipe", "loop", "functions"])
def test_block_runs_as_pasted_and_warns_of_nothing(text, tmp_path):
    (tmp_path / "pasted.py").write_text(text)
    command = [sys.executable, "-W", "error", "pasted.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
