"""A small fake of OpenOOD, and processes that import it, for the tests of the registration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., subprocess.CompletedProcess]

FAKE = {
    "__init__.py": "",
    "evaluation_api/__init__.py": "from .evaluator import Evaluator\n",
    "evaluation_api/evaluator.py": """
        from openood.postprocessors import BasePostprocessor
        from .datasets import DATA_INFO, data_setup, get_id_ood_dataloader
        from .postprocessor import get_postprocessor
        from .preprocessor import get_default_preprocessor

        class Evaluator:
            def __init__(self, name, id_name='cifar10', preprocessor=None):
                if id_name not in DATA_INFO:
                    raise ValueError('not supported')
                preprocessor = preprocessor or get_default_preprocessor(id_name)
                self.id_name = id_name
                self.postprocessor = get_postprocessor('configs', name, id_name)
                data_setup('data', id_name)
                self.dataloader_dict = get_id_ood_dataloader(id_name, 'data', preprocessor, batch_size=2)

            def eval_ood(self, *args, **kwargs):
                raise NotImplementedError

            eval_acc = hyperparam_search = _classifier_inference = eval_ood
        """,
    "evaluation_api/datasets.py": """
        from .preprocessor import get_default_preprocessor

        DATA_INFO = {'cifar10': {'num_classes': 10}}

        def data_setup(data_root, id_data_name):
            print('downloaded', id_data_name)

        def get_id_ood_dataloader(id_name, data_root, preprocessor, **loader_kwargs):
            return id_name
        """,
    "evaluation_api/preprocessor.py": """
        default_preprocessing_dict = {'cifar10': {'normalization': [[0.4, 0.5, 0.6], [0.2, 0.2, 0.3]]}}

        class Preset:
            def __call__(self, image):
                import numpy, torch
                return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255

        def get_default_preprocessor(data_name, att=False):
            if data_name not in default_preprocessing_dict:
                raise NotImplementedError
            return Preset()
        """,
    "evaluation_api/postprocessor.py": """
        import os
        from openood.postprocessors import BasePostprocessor

        postprocessors = {'msp': BasePostprocessor}

        def get_postprocessor(config_root, postprocessor_name, id_data_name):
            path = os.path.join(config_root, 'postprocessors', f'{postprocessor_name}.yml')
            if not os.path.exists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                open(path, 'w').write('downloaded')
            return postprocessors[postprocessor_name](path)
        """,
    "postprocessors/__init__.py": """
        from .base import BasePostprocessor
        from .utils import get_postprocessor
        """,
    "postprocessors/base.py": """
        class BasePostprocessor:
            def __init__(self, config):
                self.config = config
        """,
    "postprocessors/info.py": "num_classes_dict = {'cifar10': 10}\n",
    "preprocessors/__init__.py": "",
    "preprocessors/transform.py": "normalization_dict = {'cifar10': [[0.4], [0.2]]}\n",
    "postprocessors/utils.py": """
        from openood.preprocessors.transform import normalization_dict
        from .base import BasePostprocessor
        from .info import num_classes_dict

        def get_postprocessor(config):
            postprocessors = {'msp': BasePostprocessor}
            return postprocessors[config.postprocessor.name](config)
        """,
    "pipelines.py": "from openood.postprocessors import get_postprocessor\n",
}

# Before anything else: classes of ours that do not need the real OpenOOD.
OURS = """
import sys, types
ours = sys.modules['openood_adascale.plugin.postprocessor'] = types.ModuleType('openood_adascale.plugin.postprocessor')
class Ours:
    def __init__(self, config):
        self.config = config
ours.POSTPROCESSORS = {'adascale': Ours}
def config(name):
    return types.SimpleNamespace(postprocessor=types.SimpleNamespace(name=name))
"""

AUTOLOAD = "import openood_adascale_autoload; openood_adascale_autoload.autoload()"

REGISTER = "import openood_adascale; openood_adascale.register()"

CHECK = """
import tabnanny  # any import: what was half-initialised is looked at again
import os, openood.evaluation_api as api, openood.postprocessors as pp, openood.pipelines
from openood.evaluation_api import evaluator, postprocessor
assert postprocessor.postprocessors['adascale'] is Ours
assert evaluator.get_postprocessor is postprocessor.get_postprocessor
assert not hasattr(postprocessor.get_postprocessor.__wrapped__, '__wrapped__')
found = api.Evaluator('adascale').postprocessor
assert type(found) is Ours
assert found.yaml_source == (os.path.abspath('configs'), 'adascale', 'cifar10')
assert os.path.isfile(found.config), 'the packaged yml'
assert not os.path.exists('configs'), 'written into the user\\'s tree'
assert pp.get_postprocessor is pp.utils.get_postprocessor is openood.pipelines.get_postprocessor
assert type(pp.get_postprocessor(config('adascale'))) is Ours
assert type(pp.get_postprocessor(config=config('msp'))) is pp.BasePostprocessor
assert type(api.Evaluator('msp').postprocessor) is pp.BasePostprocessor
assert os.path.exists('configs/postprocessors/msp.yml')
"""

UNREGISTERED = """
import openood.pipelines
from openood.evaluation_api import postprocessor
assert list(postprocessor.postprocessors) == ['msp']
assert not hasattr(postprocessor.get_postprocessor, '__wrapped__')
assert not hasattr(openood.pipelines.get_postprocessor, '__wrapped__')
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for name, text in FAKE.items():
        path = tmp_path / "fake" / "openood" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path / "fake" / "openood"


@pytest.fixture
def run(fake: Path, tmp_path: Path) -> Run:
    """Runs code in a fresh process that finds the fake OpenOOD; fails with its stderr if it fails."""

    def call(*code: str, ours: bool = True, **variables: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(fake.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENOOD_")}
        script = tmp_path / "script.py"
        script.write_text("\n".join([OURS if ours else "", *map(dedent, code)]))
        env |= {"PYTHONPATH": path} | variables
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, timeout=120, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    return call
