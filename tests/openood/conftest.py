"""Fixtures with the real OpenOOD: a copy of its checkout, data, checkpoints, scripts; without it the tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openood_support import (
    SmallNet,
    copy_checkout,
    digits_of,
    find_openood,
    openood_description,
    train_runs,
    write_cifar10_benchmark,
    write_untrained,
)

import openood_adascale
from openood_adascale import unregister
from openood_adascale.plugin.import_hook import configs_root

NO_OPENOOD = "OpenOOD is not there: set OPENOOD_ROOT to a checkout of it"


@pytest.fixture(scope="session")
def openood_root() -> Path:
    """The installed checkout, which is only read."""
    root = find_openood()
    if root is None:
        pytest.skip(NO_OPENOOD)
    return root


@pytest.fixture(autouse=True)
def _openood_importable(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import `openood` from the copied checkout, in this process and in those it starts."""
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.setenv("PYTHONPATH", python_path(checkout))


def python_path(checkout: Path) -> str:
    return os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def checkout(openood_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with `data/` laid out for the benchmark cifar10; git ignores `data/` and `results/`."""
    root = tmp_path_factory.mktemp("bench") / "OpenOOD"
    copy_checkout(openood_root, root)
    write_cifar10_benchmark(root / "data")
    return root


@pytest.fixture(scope="session")
def imagenet_checkpoint(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`--ckpt-path` of an untrained ResNet-50 for a tiny benchmark imagenet, which is added to the checkout's data."""
    path = checkout / "results" / "patches_resnet50" / "best.ckpt"
    write_untrained(checkout, path)
    return path


@pytest.fixture(scope="session")
def checkpoint_root(checkout: Path) -> Path:
    """`--root` for eval_ood.py: two runs, s0 and s1 (the same network with two heads)."""
    root = checkout / "results" / "digits_resnet18_32x32"
    train_runs(checkout, root)
    return root


@pytest.fixture
def run_root(checkpoint_root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A `--root` of this test's own, which holds the run s0."""
    slug = "".join(c if c.isalnum() else "_" for c in request.node.name)
    # eval_ood.py takes another network if the path has one of these two words.
    root = checkpoint_root.parent / f"run_{slug}".replace("csi", "c_si").replace("udg", "u_dg")
    (root / "s0").mkdir(parents=True)
    shutil.copyfile(checkpoint_root / "s0/best.ckpt", root / "s0/best.ckpt")
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def evaluator_kwargs(checkout: Path) -> dict[str, Any]:
    """Keyword arguments of `openood.evaluation_api.Evaluator`, but for the network and the postprocessor."""
    return {
        "id_name": "cifar10",
        "data_root": str(checkout / "data"),
        "config_root": str(checkout / "configs"),
        "num_workers": 0,
    }


@pytest.fixture
def packaged() -> Path:
    return configs_root() / "postprocessors"


@pytest.fixture
def configs(tmp_path: Path, packaged: Path, checkout: Path) -> Callable[..., str]:
    """configs("lts", APS_mode=True, postprocessor_sweep={…}, k2=50): write a YAML file, and return the config root.

    It is the packaged file, or OpenOOD's, of ``source`` (default: the same name), with other settings.
    """
    root = tmp_path / "configs"

    def write(name: str, source: str | None = None, **changes: Any) -> str:
        found = [
            folder / f"{source or name}.yml" for folder in (packaged, checkout / "configs/postprocessors")
        ]
        section = yaml.safe_load(next(path for path in found if path.is_file()).read_text())["postprocessor"]
        for key in changes.keys() & {"APS_mode", "postprocessor_sweep"}:
            section[key] = changes.pop(key)
        section["postprocessor_args"] = {**section["postprocessor_args"], **changes}
        path = root / f"postprocessors/{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"postprocessor": {**section, "name": name}}, sort_keys=False))
        return str(root)

    return write


@pytest.fixture
def small_net() -> SmallNet:
    return SmallNet().eval()


@pytest.fixture
def small_evaluator(evaluator_kwargs, small_net):
    """small_evaluator("msp", net=None, **kwargs) -> Evaluator, of the small network if net is None."""

    def make(postprocessor_name=None, net=None, **kwargs):
        from openood.evaluation_api import Evaluator

        return Evaluator(
            net or small_net, postprocessor_name=postprocessor_name, **{**evaluator_kwargs, **kwargs}
        )

    return make


@pytest.fixture(scope="session")
def run_script(checkout: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script(args, env=None, timeout=600, check=True): run `python <args>` in the copied checkout.

    Loaders start no processes, unless `env` says so. With `check`, a script that fails fails the test.
    """

    def run(
        args: list[str], env: dict[str, str] | None = None, timeout: float = 600, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = " ".join(["python", *map(str, args)])
        alone = {"OPENOOD_ADASCALE_WORKERS": "0", "PYTHONPATH": python_path(checkout)}
        full_env = {**os.environ, **alone, **(env or {})}
        try:
            full = [sys.executable, *map(str, args)]
            done = subprocess.run(
                full, cwd=checkout, env=full_env, timeout=timeout, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{command} took more than {timeout} s\n{_tail(late.stdout)}\n{_tail(late.stderr)}")
        if check and done.returncode:
            pytest.fail(f"{command} gave {done.returncode}\n{_tail(done.stdout)}\n{_tail(done.stderr)}")
        return done

    return run


def _tail(output: str | bytes | None, n: int = 4000) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-n:]


@pytest.fixture(scope="session")
def main_args(checkout: Path, checkpoint_root: Path) -> Callable[..., list[str]]:
    """main_args("configs/postprocessors/ash.yml", *overrides, mark="0"): arguments for run_script.

    The table is `results/*_<mark>/s0/ood/ood.csv` in the checkout, to which each run appends.
    """

    def build(postprocessor_yml: str | Path, *overrides: str, mark: str = "0") -> list[str]:
        return [
            "main.py",
            "--config",
            "configs/datasets/cifar10/cifar10.yml",
            "configs/datasets/cifar10/cifar10_ood.yml",
            "configs/networks/resnet18_32x32.yml",
            "configs/pipelines/test/test_ood.yml",
            "configs/preprocessors/base_preprocessor.yml",
            str(postprocessor_yml),
            "--num_workers",
            "0",
            "--network.checkpoint",
            str((checkpoint_root / "s0" / "best.ckpt").relative_to(checkout)),
            "--mark",
            mark,
            # The default asks at the terminal where the folder is there already.
            "--merge_option",
            "merge",
            *overrides,
        ]

    return build


@pytest.fixture
def _undone():
    """Undo whatever the test registers."""
    yield
    unregister()
    openood_adascale.register()


@pytest.fixture
def digits(checkout):
    """The benchmark's images as a Benchmark."""
    return digits_of(checkout)


@pytest.fixture
def description(checkout):
    """The description of a custom dataset of the benchmark's images."""
    return openood_description(checkout)
