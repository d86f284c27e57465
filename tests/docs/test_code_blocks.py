"""Code blocks of the documents; each runs after the earlier ones of its page, unless it is marked as not run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import reference
import yaml
from helpers import Block, all_blocks, call
from openood_support import find_openood

import openood_adascale

BLOCKS = all_blocks()
OPENOOD = find_openood()  # before a page's own copy of it can be imported
CONFIGS = Path(__file__).parents[2] / "configs" / "postprocessors"
CHECKOUT_PAGES = ("docs/openood.md", "docs/own-datasets.md")
"""Pages whose blocks run in a checkout of OpenOOD."""


def needs_openood(block: Block) -> bool:
    """Return True if the block runs OpenOOD itself."""
    if block.language == "python":
        return bool(re.search(r"^from openood[. ]|^import openood$|plugin\.postprocessor", block.code, re.M))
    return any("scripts/" in word or word == "main.py" for _, words in block.commands() for word in words)


class Page:
    """A page's working directory, its Python names, and the blocks that have run."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.place = name, folder / "page"
        self.done: set[int] = set()
        self.openood = OPENOOD if name in CHECKOUT_PAGES else None
        if self.openood is not None:
            openood_adascale.register()
            helpers.write_checkout(self.place, self.openood)
        else:
            self.place.mkdir()
        (helpers.write_pets if name == "docs/own-datasets.md" else helpers.write_folders)(self.place)
        helpers.write_published(self.place)

    @cached_property
    def names(self) -> dict[str, Any]:
        found = helpers.names()
        if self.name == "docs/pytorch-ood.md":
            found.update(helpers.pytorch_ood_names())
        if self.openood is not None:
            from openood_support import SmallNet

            found["net"] = SmallNet().eval()
        return found

    def run(self, block: Block) -> None:
        """Run a block, and the earlier ones of its page that have not run yet and can run here."""
        for other in BLOCKS:
            if other.page == block.page and other.line <= block.line and other.line not in self.done:
                self.done.add(other.line)  # once, even if it fails
                if not other.not_run and (other is block or not why_not(other)):
                    self._run(other)

    def _run(self, block: Block) -> None:
        if block.language == "python":
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.place)
                exec(compile(block.code, block.name, "exec"), self.names)
        elif block.language == "yaml":
            check_yaml(block, self.place)
        else:
            for variables, words in block.commands():
                self._call(variables, words)

    def _call(self, variables: dict[str, str], words: list[str]) -> None:
        program, *arguments = words
        own_process = variables or arguments[0] == "run" or program == "python"
        if not own_process:
            call(*arguments, cwd=self.place)
            return
        paths = [str(self.place), os.environ.get("PYTHONPATH", "")]
        found = {
            "OPENOOD_DEVICE": "cpu",
            "OPENOOD_ADASCALE_WORKERS": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **variables,
        }
        module = [] if program == "python" else ["-m", "openood_adascale"]
        done = subprocess.run(
            [sys.executable, *module, *arguments],
            cwd=self.place,
            env={**os.environ, **found},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]


def check_yaml(block: Block, place: Path) -> None:
    """Read a YAML block as a postprocessor's settings or as the description of a dataset."""
    content = yaml.safe_load(block.code)
    if "postprocessor" in content:
        from openood_adascale.plugin.config import Configuration, postprocessor_methods

        section = content["postprocessor"]
        found = Configuration.parse(postprocessor_methods()[section["name"]], section)
        if block.page == "docs/openood.md":  # shows all settings
            packaged = yaml.safe_load((CONFIGS / f"{section['name']}.yml").read_text(encoding="utf-8"))
            assert section["postprocessor_args"] == packaged["postprocessor"]["postprocessor_args"]
            assert set(section["postprocessor_args"]) == set(found.settings.names()) - {"variant"}
        return
    from openood_adascale.plugin.custom_dataset import read_description

    path = place / f"{content['name']}.yml"
    path.write_text(block.code, encoding="utf-8")
    found = read_description(path)
    found.check_images()
    assert found.sets["id"]["test"].find().labels == [*[0] * 4, *[1] * 4, *[2] * 4]


def why_not(block: Block) -> str:
    """Return the reason why a block cannot run here (empty if it can)."""
    if needs_openood(block) and OPENOOD is None:
        return "needs OpenOOD: set OPENOOD_ROOT to a checkout of it"
    if "pytorch_ood" in block.code:
        try:
            import pytorch_ood.api as _  # noqa: F401
        except ImportError:
            return "needs pytorch-ood 0.4 or later"
    return ""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return a function that gives the page of a name, one for all of its blocks."""
    made: dict[str, Page] = {}

    def page(name: str) -> Page:
        if name not in made:
            made[name] = Page(name, tmp_path_factory.mktemp(Path(name).stem))
        return made[name]

    yield page
    openood_adascale.unregister()
    openood_adascale.register()


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.not_run], ids=lambda b: b.name)
def test_code_block_runs(block, pages, monkeypatch):
    assert block.language in ("python", "yaml", "bash"), "other languages need <!-- not run: WHY -->"
    if block.language == "bash":
        programs = {words[0] for _, words in block.commands()}
        assert programs <= {"openood-adascale", "python"}, (
            "other programs need <!-- not run: WHY --> right before the block"
        )
    if reason := why_not(block):
        pytest.skip(reason)
    page = pages(block.page)
    if page.openood is not None:
        monkeypatch.syspath_prepend(str(page.place))
    monkeypatch.setenv("OPENOOD_DEVICE", "cpu")
    page.run(block)


def test_equations_page_matches_reference(pages):
    page = pages("docs/method.md")
    (block,) = [block for block in BLOCKS if block.page == page.name]
    page.run(block)
    n = page.names
    expected, factor, _ = reference.scores(n["val_a"], n["val_a_eps"], n["a"], n["a_eps"], n["W"], n["b"])
    np.testing.assert_allclose(n["r"], factor, rtol=1e-6)
    np.testing.assert_allclose(n["scores"], expected, rtol=1e-5)
