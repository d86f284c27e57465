"""Fixtures for the tests against the real OpenOOD: a private checkout of it, data, checkpoints, its scripts.

Without OpenOOD (see :mod:`openood_support`) these tests are skipped. The checkout that is found is only read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openood_support import (
    SmallNet,
    copy_checkout,
    digits_of,
    find_openood,
    importable,
    openood_description,
    train_runs,
    write_cifar10_benchmark,
    write_untrained,
)

import openood_adascale
from openood_adascale import unregister

NO_OPENOOD = "OpenOOD is not there: set OPENOOD_ROOT to a checkout of it"


# --- the checkout ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def openood_root() -> Path:
    """The user's own checkout: only to be read. Skips where there is none."""
    root = find_openood()
    if root is None:
        pytest.skip(NO_OPENOOD)
    return root


@pytest.fixture(autouse=True)
def _openood_importable(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every test here `openood` is the private checkout's, in this process and in those it starts."""
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.setenv("PYTHONPATH", python_path(checkout))


def python_path(checkout: Path) -> str:
    return os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def checkout(openood_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of the checkout, with `data/` laid out for the benchmark cifar10.

    OpenOOD's .gitignore names data/ and results/, so `git status --porcelain` is empty until a script changes
    the checkout itself.
    """
    # eval_ood.py takes another network if 'csi' or 'udg' occurs in the path of the runs.
    root = tmp_path_factory.mktemp("bench") / "OpenOOD"
    copy_checkout(openood_root, root)
    write_cifar10_benchmark(root / "data")
    return root


# --- networks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def imagenet_checkpoint(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds a tiny benchmark imagenet to the checkout's data; returns a ResNet-50 for it as `--ckpt-path`.

    The network is untrained (only its batch norms have seen images), so its figures mean nothing.
    """
    path = checkout / "results" / "patches_resnet50" / "best.ckpt"
    write_untrained(checkout, path)
    return path


@pytest.fixture(scope="session")
def checkpoint_root(checkout: Path) -> Path:
    """`--root` for eval_ood.py: two runs, s0 and s1 (the same network with two heads)."""
    root = checkout / "results" / "digits_resnet18_32x32"
    train_runs(checkout, root)
    return root


@pytest.fixture(scope="session")
def digits_net(checkout: Path, checkpoint_root: Path) -> Callable[..., Any]:
    """digits_net(run="s0"): a fresh ResNet18_32x32 with that run's weights, in eval mode, on the CPU."""
    import torch

    def load(run: str = "s0") -> torch.nn.Module:
        with importable(checkout):
            from openood.networks.resnet18_32x32 import ResNet18_32x32

        net = ResNet18_32x32(num_classes=10)
        net.load_state_dict(torch.load(checkpoint_root / run / "best.ckpt", map_location="cpu"))
        return net.eval()

    return load


@pytest.fixture
def run_root(checkpoint_root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A `--root` of this test's own, holding the run s0.

    eval_ood.py keeps postprocessors, scores and tables below its root and takes them up in the next run.
    """
    slug = "".join(c if c.isalnum() else "_" for c in request.node.name)
    # See `checkout` for the two words that must not occur.
    root = checkpoint_root.parent / f"run_{slug}".replace("csi", "c_si").replace("udg", "u_dg")
    (root / "s0").mkdir(parents=True)
    shutil.copyfile(checkpoint_root / "s0/best.ckpt", root / "s0/best.ckpt")
    yield root
    shutil.rmtree(root)


# --- OpenOOD's ways in -------------------------------------------------------------------------------------


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
    from openood_adascale.plugin.import_hook import configs_root

    return configs_root() / "postprocessors"


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
    """run_script(args, env=None, timeout=600, check=True): `python <args>` in the private checkout.

    `env` is added to the environment, to one in which no loader starts processes of its own (OpenOOD's scripts start 8
    for each loader, whatever the machine). If the script fails, so does the test, with the end of its output, unless
    `check` is False.
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
    """main_args("configs/postprocessors/ash.yml", *overrides, mark="0", fsood=False): for run_script.

    As OpenOOD's scripts/ood/*/cifar10_test_ood_*.sh call main.py, with the run s0 of `checkpoint_root`.
    `overrides` are more command line arguments ("--postprocessor.postprocessor_args.percentile", "80"). The
    table comes to `results/*_<mark>/s0/ood/ood.csv` below the checkout, where every run appends to it.
    """

    def build(
        postprocessor_yml: str | Path, *overrides: str, mark: str = "0", fsood: bool = False
    ) -> list[str]:
        scheme = "fsood" if fsood else "ood"
        return [
            "main.py",
            "--config",
            "configs/datasets/cifar10/cifar10.yml",
            f"configs/datasets/cifar10/cifar10_{scheme}.yml",
            "configs/networks/resnet18_32x32.yml",
            f"configs/pipelines/test/test_{scheme}.yml",
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


# --- what several tests begin with -------------------------------------------------------------------------


@pytest.fixture
def _undone():
    """Nothing that the test registers stays."""
    yield
    unregister()
    openood_adascale.register()


@pytest.fixture
def digits(checkout):
    """The benchmark's images as a Benchmark of one's own."""
    return digits_of(checkout)


@pytest.fixture
def description(checkout):
    """The benchmark's images as somebody describes a data set of his own."""
    return openood_description(checkout)
