"""The tests in fresh environments: with the oldest of everything that is declared, with the newest, and in between.

Writes a table in Markdown, and beside it what each environment had and what pytest printed::

    python tests/versions/run.py --out /tmp/versions                 # all rows for which there is a Python
    python tests/versions/run.py --out /tmp/versions --only oldest
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS: Mapping[str, tuple[str, str]] = {
    "oldest": ("3.10", "OLDEST"),
    "torch 2.4": ("3.11", "torch==2.4.* torchvision==0.19.* numpy==1.26.*"),
    "torch 2.5": ("3.12", "torch==2.5.* torchvision==0.20.* numpy==2.*"),
    "newest": ("3.13", ""),
}
"""Python and what pip is told beside the project; OLDEST: every lower bound of setup.cfg."""
TOLD = (
    "torch",
    "numpy",
    "pandas",
    "scikit-learn",
    "pyyaml",
    "safetensors",
    "tqdm",
    "matplotlib",
    "pillow",
    "timm",
)


def oldest() -> list[str]:
    """``name==bound`` of every requirement in setup.cfg that has a lower bound and is installed by the extra ``test``."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    text = "\n".join(
        [parser["options"]["install_requires"], *(extras[name] for name in ("plots", "images", "test"))]
    )
    bounds = dict(re.findall(r"^\s*([\w-]+)>=([\w.]+)", text, re.MULTILINE))
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def python(version: str) -> str | None:
    """An interpreter of this version, on the path or of pyenv."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = shutil.which(f"python{version}")
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    others = sorted(home.glob(f"{version}.*/bin/python"))
    works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    return found if works else str(others[-1]) if others else None


def tried(interpreter: str, pins: str, folder: Path, timeout: float) -> dict[str, object]:
    """A fresh clone and a fresh environment in ``folder``, and what came of the tests."""
    clone, venv = folder / "clone", folder / "venv"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run([interpreter, "-m", "venv", venv], check=True)
    told = venv / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OPENOOD_ROOT")}
    requirements = oldest() if pins == "OLDEST" else pins.split()
    subprocess.run(
        [told, "-m", "pip", "install", "-q", "-e", ".[test]", *requirements], cwd=clone, check=True
    )
    listed = subprocess.run([told, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    versions = {one["name"].lower(): one["version"] for one in json.loads(listed.stdout)}
    begun = time.monotonic()
    tests = subprocess.run(
        [told, "-m", "pytest", "-q"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    (folder / "pytest.txt").write_text(tests.stdout + tests.stderr)
    last = next(
        (line for line in reversed(tests.stdout.splitlines()) if " in " in line), "nothing ran"
    ).strip("= ")
    return {
        "versions": versions,
        "result": last,
        "seconds": time.monotonic() - begun,
        "ok": tests.returncode == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="a folder; it keeps the environments' lists and pytest's words"
    )
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for the tests of a row")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp())).resolve()  # commands run in other folders
    print(f"| | Python | {' | '.join(TOLD)} | tests |\n|{'---|' * (len(TOLD) + 3)}", flush=True)
    failed = False
    for name in arguments.only:
        version, pins = ROWS[name]
        interpreter = python(version)
        if interpreter is None:
            print(f"| {name} | {version}: not here |", flush=True)
            continue
        folder = out / name.replace(" ", "-")
        folder.mkdir(parents=True)
        found = tried(interpreter, pins, folder, arguments.timeout)
        (folder / "found.json").write_text(json.dumps(found, indent=1))
        shutil.rmtree(folder / "venv")
        versions = found["versions"]
        assert isinstance(versions, dict)
        cells = [name, version, *(versions.get(one, "—") for one in TOLD), str(found["result"])]
        print(f"| {' | '.join(cells)} |", flush=True)
        failed |= not found["ok"]
    sys.exit(failed)


if __name__ == "__main__":
    main()
