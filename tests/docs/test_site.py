"""The built site: the API page, the notebooks, cross-references, and the options that the pages name."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import openood_adascale
from openood_adascale.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FIELDS = {"Parameters", "Returns", "Yields", "Raises"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, where every warning is an error; a missing cross-reference is a warning."""
    for library in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(library, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", out],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def entries(site):
    """Return a dict of name, signature and fields of every entry of the API page."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup((site / "api.html").read_text(encoding="utf-8"), "html.parser")
    found = {}
    for signature in page.select("dl.py > dt.sig[id]"):
        body = signature.find_next_sibling("dd")
        fields = body.find("dl", class_="field-list", recursive=False)
        labels = fields.find_all("dt", recursive=False) if fields else []
        found[signature["id"]] = {
            "text": signature.get_text(),
            "parameters": [
                name.get_text().lstrip("*") for name in signature.select("em.sig-param > .n:first-child")
            ],
            "fields": {label.get_text().strip(": "): label.find_next_sibling("dd") for label in labels},
        }
    return found


@pytest.mark.parametrize("name", [name for name in openood_adascale.__all__ if name != "__version__"])
def test_api_page_has_public_name(entries, name):
    assert f"openood_adascale.{name}" in entries


def test_api_page_has_no_attribute_type_fields(entries):
    # Napoleon takes the text before a colon in an attribute's docstring for its type.
    odd = {name: sorted(set(entry["fields"]) - FIELDS) for name, entry in entries.items()}
    assert {name: fields for name, fields in odd.items() if fields} == {}


def test_api_page_has_no_private_names(entries):
    assert [name for name in entries if any(part.startswith("_") for part in name.split("."))] == []


def test_api_page_describes_every_parameter(entries):
    missing = {}
    for name, entry in entries.items():
        field = entry["fields"].get("Parameters")
        items = [] if field is None else field.select("li") or field.select("p")
        texts = [item.get_text().strip() for item in items]
        described = {text.partition(" ")[0] for text in texts if text.partition("–")[2].strip()}
        if lacking := [parameter for parameter in entry["parameters"] if parameter not in described]:
            missing[name] = lacking
    assert missing == {}


def test_signature_shows_hyperparameters_and_defaults(entries):
    shown = entries["openood_adascale.AdaSCALE"]["text"]
    assert "percentile: tuple[float, float] = (80.0, 85.0)" in shown
    assert "k1: float = 1.0" in shown


@pytest.mark.parametrize("name", ["first_look", "comparison"])
def test_notebook_is_page_with_outputs(site, name):
    text = (site / "examples" / f"{name}.html").read_text(encoding="utf-8")
    assert "cell_output" in text


@pytest.fixture(scope="module")
def options():
    """Return the options in the commands' help texts."""
    found = set()
    for command in COMMANDS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            main([command, "--help"])
        found.update(OPTION.findall(out.getvalue()))
    return found


@pytest.mark.parametrize("page", ["commands", "compare", "own-images"])
def test_page_names_only_existing_options(options, page):
    named = set(OPTION.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    assert named - options == set()


def test_pages_name_every_option(options):
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert options - set(OPTION.findall(text)) == set()
