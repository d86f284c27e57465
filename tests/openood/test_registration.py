"""Registration with the real OpenOOD, in fresh processes."""

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

NO_DOWNLOAD = """
import urllib.request
def refuse(*args, **kwargs):
    raise SystemExit('OpenOOD tried to download')
urllib.request.urlretrieve = refuse
"""
CHECK = """
import os, openood.postprocessors as pp, torch
from openood.evaluation_api import evaluator, postprocessor as api
from openood.pipelines import test_ood_pipeline
from openood.utils.config import Config, merge_configs
from openood_adascale.plugin.import_hook import configs_root

for name in ('adascale', 'adascale_logit'):
    made = evaluator.get_postprocessor('configs', name, 'cifar10')
    assert isinstance(made, pp.BasePostprocessor) and made.yaml_name == name
    assert type(made) is api.postprocessors[name]
    assert type(made).__module__ == 'openood_adascale.plugin.postprocessor'
    config = Config(str(configs_root() / 'postprocessors' / f'{name}.yml'))
    config = merge_configs(config, Config(dataset={'name': 'cifar10'}))
    for function in (pp.get_postprocessor, pp.utils.get_postprocessor, test_ood_pipeline.get_postprocessor):
        assert type(function(config)) is type(made)
assert evaluator.get_postprocessor is api.get_postprocessor
assert api.postprocessors['adascale_a'] is pp.AdaScalePostprocessor
assert not os.listdir('.'), os.listdir('.')
assert torch.cuda.is_available() or torch.ones(2).cuda().device.type == 'cpu'
"""
ORDERS = {
    "openood first": "import openood, torch",
    "as main.py": "from openood.pipelines import get_pipeline; from openood.utils import launch",
    "as eval_ood.py": "import torch; from openood.evaluation_api import Evaluator; import openood.networks",
    "our postprocessor first": "import openood_adascale.plugin.postprocessor",
}


@pytest.fixture
def run(openood_root: Path, tmp_path: Path) -> Run:
    """run(*code): lines of the plugin on standard error of a process in an empty directory; each is printed once."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def call(*code: str) -> list[str]:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(openood_root)]))
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENOOD_")} | {"PYTHONPATH": path}
        script = tmp_path / "script.py"
        script.write_text("\n".join([NO_DOWNLOAD, *map(dedent, code)]))
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=folder, env=env, timeout=300, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for line in done.stderr.splitlines() if line.startswith("openood-adascale")]
        assert len(lines) == len(set(lines)), lines
        return lines

    return call


@pytest.mark.parametrize("order", ORDERS)
def test_plugin_registers_in_every_import_order(run: Run, order: str) -> None:
    pytest.importorskip("torch", minversion="2.5")
    if "openood_adascale" not in {e.name for e in importlib.metadata.entry_points(group="torch.backends")}:
        pytest.skip("the package is not installed, so torch does not load it")
    lines = run(ORDERS[order], CHECK)
    assert not any("without this package" in line or "not active" in line for line in lines), lines


def test_register_and_unregister_with_openood_loaded_restore_exactly(run: Run) -> None:
    run(
        """
        import sys
        import openood_adascale
        openood_adascale.register()
        from openood.evaluation_api import Evaluator
        import openood.pipelines
        openood_adascale.unregister()
        """,
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
        assert 'adascale' not in postprocessor.postprocessors and utils.torch is torch
        assert before[2] == (False, id(torch.nn.Module.cuda))
        assert not hasattr(evaluator.get_postprocessor, '__wrapped__')
        openood_adascale.register()
        """,
        CHECK,
        "assert state()[0] != before[0]",
        "openood_adascale.unregister()",
        "after = state()",
        "assert {n: after[0][n] for n in before[0]} == before[0] and after[1:] == before[1:]",
    )


def test_openood_imports_without_imgaug_and_libmr(run: Run) -> None:
    lines = run(
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
        assert sum(package in line for line in lines) == 1, lines
