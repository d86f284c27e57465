"""Registration with the real OpenOOD, in processes of their own: every order of imports, workers, undoing."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

Run = Callable[..., subprocess.CompletedProcess]

NO_NETWORK = """
import urllib.request
def refuse(*args, **kwargs):
    raise SystemExit('OpenOOD tried to download')
urllib.request.urlretrieve = refuse
"""

CHECK = """
import os, sys, openood.postprocessors as pp, torch
from openood.evaluation_api import evaluator, postprocessor as api
from openood.pipelines import test_ood_pipeline
from openood.utils.config import Config, merge_configs
from openood_adascale.plugin.import_hook import configs_root

names = ('adascale', 'adascale_logit')
made = {name: evaluator.get_postprocessor('configs', name, 'cifar10') for name in names}
for name, postprocessor in made.items():
    assert isinstance(postprocessor, pp.BasePostprocessor)
    assert type(postprocessor).__module__ == 'openood_adascale.plugin.postprocessor'
    assert type(postprocessor) is api.postprocessors[name]
    assert postprocessor.yaml_name == name
    yml = configs_root() / 'postprocessors' / f'{name}.yml'
    config = merge_configs(Config(str(yml)), Config(dataset={'name': 'cifar10'}))
    for function in (pp.get_postprocessor, pp.utils.get_postprocessor, test_ood_pipeline.get_postprocessor):
        assert type(function(config)) is type(postprocessor)
assert evaluator.get_postprocessor is api.get_postprocessor
assert api.postprocessors['adascale_a'] is pp.AdaScalePostprocessor
assert not os.listdir('.'), os.listdir('.')
"""
DEVICE = """
if not torch.cuda.is_available():
    assert torch.ones(2).cuda().device.type == 'cpu'
"""

ORDERS = {
    "openood first": "import openood, torch",
    "as main.py": "from openood.pipelines import get_pipeline; from openood.utils import launch",
    "as eval_ood.py": "import torch; from openood.evaluation_api import Evaluator; import openood.networks",
    "our postprocessor first": "import openood_adascale.plugin.postprocessor",
}


@pytest.fixture
def run(openood_root: Path, tmp_path: Path) -> Run:
    """Runs code in a process, in an empty directory and without a network; fails if it fails."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def call(*code: str, cwd: Path = folder, **variables: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(openood_root)]))
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENOOD_")}
        script = tmp_path / "script.py"
        script.write_text("\n".join([NO_NETWORK, *map(dedent, code)]))
        env |= {"PYTHONPATH": path} | variables
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, cwd=cwd, env=env, timeout=300, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return call


def needs_autoload() -> None:
    pytest.importorskip("torch", minversion="2.5")
    if "openood_adascale" not in {e.name for e in importlib.metadata.entry_points(group="torch.backends")}:
        pytest.skip("the package is not installed, so torch does not know of it")


@pytest.mark.parametrize("order", ORDERS)
def test_registers_by_itself(run: Run, order: str) -> None:
    needs_autoload()
    done = run(ORDERS[order], CHECK, DEVICE)
    lines = [line for line in done.stderr.splitlines() if line.startswith("openood-adascale")]
    assert len(lines) == len(set(lines))
    assert not any("without this package" in line or "not active" in line for line in lines)


WITH_OPENOOD_LOADED = """
import sys
import openood_adascale
openood_adascale.register()
from openood.evaluation_api import Evaluator
import openood.pipelines
openood_adascale.unregister()
"""


def test_registers_when_openood_is_loaded_and_unregisters_exactly(run: Run) -> None:
    run(
        WITH_OPENOOD_LOADED,
        """
        import torch
        def state():
            modules = {n: m for n, m in sys.modules.items() if n.partition('.')[0] == 'openood'}
            contents = {n: {k: id(v) for k, v in vars(m).items()} for n, m in modules.items()}
            table = dict(modules['openood.evaluation_api.postprocessor'].postprocessors)
            cuda = 'cuda' in vars(torch.Tensor), id(torch.nn.Module.cuda)
            return contents, table, cuda, [id(finder) for finder in sys.meta_path]
        before = state()
        from openood.evaluation_api import evaluator, postprocessor
        from openood.networks import utils
        import openood.postprocessors.openmax_postprocessor as openmax
        assert 'adascale' not in postprocessor.postprocessors and utils.torch is torch
        assert before[2] == (False, id(torch.nn.Module.cuda))
        assert evaluator.get_postprocessor.__module__ == 'openood.evaluation_api.postprocessor'
        assert not hasattr(evaluator.get_postprocessor, '__wrapped__')
        assert openmax.OpenMax.__init__.__qualname__ == 'OpenMax.__init__'
        openood_adascale.register()
        """,
        CHECK,
        "assert state()[0] != before[0]",
        "openood_adascale.unregister()",
        "after = state()",
        "assert {n: after[0][n] for n in before[0]} == before[0] and after[1:] == before[1:]",
    )


def test_spawned_workers_register_silently(run: Run) -> None:
    done = run(
        """
        import multiprocessing, torch
        import openood_adascale
        openood_adascale.register()
        from openood.evaluation_api import postprocessor

        def work(_):
            assert 'adascale' in postprocessor.postprocessors
            return torch.ones(1).cuda().item() if not torch.cuda.is_available() else 1.0

        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                assert pool.map(work, [0, 1]) == [1.0, 1.0]
        """,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("openood-adascale")]
    assert len(lines) == len(set(lines))


def test_switched_off(run: Run) -> None:
    done = run(
        """
        import sys, openood_adascale, torch
        openood_adascale.register()
        import openood.networks
        from openood.networks import utils
        assert not any('openood' in type(finder).__module__ for finder in sys.meta_path)
        assert 'cuda' not in vars(torch.Tensor) and utils.torch is torch
        """,
        OPENOOD_ADASCALE_DISABLE="1",
    )
    assert "openood-adascale" not in done.stderr


def test_openood_imports_without_imgaug_and_libmr(run: Run) -> None:
    done = run(
        """
        import sys
        sys.modules['imgaug'] = sys.modules['libmr'] = None
        import openood_adascale
        openood_adascale.register()
        from openood.pipelines import get_pipeline
        from openood.evaluation_api import Evaluator
        from openood.preprocessors import DRAEMPreprocessor
        from openood.postprocessors import OpenMax
        for make, package in ((DRAEMPreprocessor, 'imgaug'), (OpenMax, 'libmr')):
            try:
                make(None)
            except ImportError as error:
                assert error.name == package and 'pip install' in str(error)
            else:
                raise SystemExit(f'{make} worked')
        """
    )
    for package in ("imgaug", "libmr"):
        assert sum(package in line for line in done.stderr.splitlines()) == 1, done.stderr
