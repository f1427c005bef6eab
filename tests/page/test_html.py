"""The page as a file: nothing in it comes from a network, and what a model or a user wrote is data."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from helpers.run_directory import ODD, group, write_run
from unmask.cli.main import main
from unmask.errors import UserError
from unmask.page import html as page_html
from unmask.page import write_report


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, text):
        if self.found and self.found[-1][0] == "script" and self.scripts:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose every text is odd."""
    directory = tmp_path_factory.mktemp("page") / ODD[0].replace("/", "")
    odd = group(vocabulary=ODD, texts=["".join(ODD)] * 2)
    odd.about["prompt"] = "".join(ODD)
    return write_run(directory, groups=lambda _: [odd])


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write_report([run], tmp_path_factory.mktemp("out") / "page.html")


def test_page_is_one_file_that_asks_nothing_of_a_network(page):
    elements = Elements(page.read_text()).found
    assert page.stat().st_size < 5e6
    links = [
        value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href", "action")
    ]
    assert all(link.startswith("#") for link in links)
    (policy,) = (each["content"] for tag, each in elements if tag == "meta" and "http-equiv" in each)
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_policy_names_every_script_that_runs_and_none_is_of_the_run(page):
    parsed = Elements(page.read_text())
    (policy,) = (each["content"] for tag, each in parsed.found if tag == "meta" and "http-equiv" in each)
    named = re.findall(r"'sha256-([^']+)'", policy)
    run = re.findall(r"<script>(.*?)</script>", page.read_text(), re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run] == named
    assert "img" not in {tag for tag, _ in parsed.found}


def test_odd_texts_of_a_run_come_back_as_they_are(page, run):
    (data,) = (text for attributes, text in Elements(page.read_text()).scripts if attributes.get("id") == "page-data")
    (shown,) = json.loads(data)["runs"]
    assert shown["name"] == run.name
    assert shown["warnings"] == [{"step": 7, "text": "reward is collapsing: lower learning_rate <b>now</b>"}]


def test_report_command_writes_where_it_says(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    (run / "report.html").unlink()
    other = write_run(tmp_path / "other", seed=1)
    assert main(["report", str(run), str(other)]) == 0
    assert "comparison.html" in capsys.readouterr().out
    assert (tmp_path / "comparison.html").is_file()
    assert main(["report", str(other), "--output", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report"], "report needs the directory of a run"),
        (["report", "nowhere"], "no recipe.toml"),
        (["report", ".", "--output", "."], "is no file that can be written"),
        (["watch"], "watch needs the directory of a run"),
        (["watch", ".", "--port", "x"], "--port is 'x'"),
    ],
)
def test_commands_refuse_in_one_line(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_page_without_bokeh_is_refused_with_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page_html, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unmask\[report\]'"):
        write_report([run], tmp_path / "page.html")
