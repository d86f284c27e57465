"""A method that is one file in ``detectors/`` and one line in the registry is everywhere: at the top level, in OpenOOD,
in the demo and in a report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import quick_process

ROOT = Path(__file__).resolve().parents[2]

MAX_LOGIT = '''
"""MaxLogit (Hendrycks et al., ICML 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..evidence.evidence import Evidence
from .base import Detector
from .settings import Settings, number_within


@dataclass(frozen=True)
class MaxLogitSettings(Settings):
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("temperature", number_within("temperature", self.temperature, 0))


class MaxLogit(Detector[MaxLogitSettings, None]):
    settings_class = MaxLogitSettings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {"temperature_list": [1, 2]}

    def judge(self, evidence: Evidence, settings: MaxLogitSettings, state: None) -> tuple[Tensor, Tensor]:
        score, pred = (evidence.logits.double() / settings.temperature).max(1)
        return pred, score
'''
LINE = '        Method("max_logit", "MaxLogit", "max_logit:MaxLogit"),\n'

USE = """
import contextlib, io, os, pickle, sys, urllib.request
from pathlib import Path
import numpy as np, torch

def refuse(*args, **kwargs):
    raise SystemExit('OpenOOD tried to download')
urllib.request.urlretrieve = refuse

import openood_adascale
from openood_adascale import Benchmark, MaxLogit, evaluate
assert {'MaxLogit', 'AdaSCALE'} <= {*openood_adascale.__all__} <= {*dir(openood_adascale)}
assert Path(openood_adascale.__file__).is_relative_to(sys.argv[1]), openood_adascale.__file__
openood_adascale.register()
from openood.evaluation_api import Evaluator
from openood.evaluation_api.postprocessor import get_postprocessor
from openood.postprocessors import get_postprocessor as mains
from openood.utils.config import Config
from openood_adascale import demo
from openood_adascale.reporting.gather import from_results
from openood_adascale.reporting.report import write
from openood_adascale.plugin.postprocessor import MaxLogitPostprocessor
from openood_postprocessing import SmallNet

# Evaluator's way, without any yml: its defaults, and nothing written
net, data, empty = SmallNet().eval(), sys.argv[2], sys.argv[3]
with contextlib.redirect_stdout(io.StringIO()) as out:
    evaluator = Evaluator(net, id_name='cifar10', data_root=data, config_root=empty, num_workers=0,
                          postprocessor_name='max_logit')
postprocessor = evaluator.postprocessor
assert type(postprocessor) is MaxLogitPostprocessor
assert postprocessor.hyperparam_search_done and out.getvalue().count('Hyperparam: ') == 2
assert net.images <= 112 + 7, net.images
assert not os.listdir(empty)
table = evaluator.eval_ood(progress=False).to_numpy().astype(float)

# main.py's way
config = Config(**{'postprocessor': {'name': 'max_logit', 'APS_mode': False,
                                     'postprocessor_args': {'temperature': 2}}})
made = mains(config)
assert type(made) is MaxLogitPostprocessor and made.settings.temperature == 2

# a pickle: as it was, until the user writes a yml
folder = Path(empty, 'postprocessors')
def again():
    restored = pickle.loads(pickle.dumps(postprocessor))
    restored.setup(net, evaluator.dataloader_dict['id'], evaluator.dataloader_dict['ood'])
    return restored
restored = again()
assert restored.hyperparam_search_done and len(restored.search_table) == 2
folder.mkdir()
(folder / 'max_logit.yml').write_text('postprocessor:\\n  APS_mode: False\\n  postprocessor_args: {temperature: 3}\\n')
restored = again()
assert not restored.APS_mode and restored.settings.temperature == 3
found = get_postprocessor(empty, 'max_logit', 'cifar10')
assert found.settings.temperature == 3

# `evaluate`, with it and with the plain detector, gives the same
benchmark = Benchmark.from_openood(evaluator.dataloader_dict)
for method in (postprocessor, MaxLogit(net)):
    mine = evaluate(method, benchmark, net, progress=False).table.to_numpy()
    np.testing.assert_allclose(mine, table, atol=1e-6)

# the demo's table, and a report
shown = {name: method for name, method in demo.methods(net).items() if name in ('msp', 'max_logit')}
results = evaluate(shown, benchmark, progress=False)
assert list(demo.summarise(results).index) == ['MaxLogit', 'MSP']
page = write(from_results(results), Path(empty, 'report')).read_text(encoding='utf-8')
assert 'MaxLogit: scores of' in page and 'MaxLogit: AUROC on validation images' in page
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with one more method."""
    root = tmp_path / "copy"
    shutil.copytree(ROOT / "openood_adascale", root / "openood_adascale")
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copy(ROOT / "openood_adascale_autoload.py", root)
    detectors = root / "openood_adascale" / "detectors"
    (detectors / "max_logit.py").write_text(MAX_LOGIT)
    registry = detectors / "registry.py"
    before, first, after = registry.read_text().partition('        Method("msp"')
    registry.write_text(before + LINE + first + after)
    return root


def test_one_file_and_one_line(package: Path, evaluator_kwargs: dict, tmp_path: Path) -> None:
    script, empty = tmp_path / "use.py", tmp_path / "empty"
    script.write_text(dedent(USE))
    empty.mkdir()
    path = os.pathsep.join([str(package), str(ROOT / "tests"), os.environ["PYTHONPATH"]])
    done = quick_process.run(
        [script, package, evaluator_kwargs["data_root"], empty], None, {**os.environ, "PYTHONPATH": path}, 300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "today's" in done.stderr
