"""The notebook: kept without outputs, and run as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"
RUN = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1200).execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_kept_without_outputs():
    assert len(cells(NOTEBOOK)) > 5
    for cell in cells(NOTEBOOK):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        compile("".join(cell["source"]), str(NOTEBOOK), "exec")


@pytest.mark.long
def test_notebook_trains_and_shows_curve_and_page(tmp_path):
    done = tmp_path / "done.ipynb"
    words = [sys.executable, "-c", RUN, str(NOTEBOOK), str(done)]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    shown = [output.get("data", {}) for cell in cells(done) for output in cell["outputs"]]
    assert any("image/png" in data for data in shown)
    assert any("text/html" in data for data in shown)
    assert (tmp_path / "runs" / "first-notebook" / "summary.json").is_file()
