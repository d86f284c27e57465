"""Data sets of one's own as names that OpenOOD knows, against a small fake of OpenOOD, in fresh processes."""

from __future__ import annotations

import functools
import os

import pytest
from fake_openood import AUTOLOAD, REGISTER, Run
from own_data import description, write_images, write_yml

pytest.importorskip("PIL")

VARIABLE = "OPENOOD_ADASCALE_DATASETS"
STATE = """
def state():
    modules = {n: m for n, m in sys.modules.items() if n.startswith('openood.')}
    tables = [modules['openood.evaluation_api.datasets'].DATA_INFO,
        modules['openood.evaluation_api.preprocessor'].default_preprocessing_dict,
        modules['openood.postprocessors.info'].num_classes_dict,
        modules['openood.preprocessors.transform'].normalization_dict]
    return {n: {**vars(m), '__warningregistry__': None} for n, m in modules.items()}, [dict(t) for t in tables]
"""
CHECK = """
import tabnanny  # any import: what was half-initialised is looked at again
import openood.postprocessors
from openood.evaluation_api import Evaluator, datasets, preprocessor
found = Evaluator('msp', id_name='mine')
assert sorted(found.dataloader_dict) == ['csid', 'id', 'ood'], found.dataloader_dict
batch = next(iter(found.dataloader_dict['id']['test']))
assert batch['data'].shape == (2, 3, 8, 8) and batch['label'].tolist() == [0, 0]
assert datasets.DATA_INFO['mine']['num_classes'] == 3
assert list(datasets.DATA_INFO['mine']['ood']['near']['datasets']) == ['birds']
assert openood.postprocessors.info.num_classes_dict['mine'] == 3
normalization = sys.modules['openood.preprocessors.transform'].normalization_dict
assert normalization['mine'] == [[0.4, 0.5, 0.6], [0.2, 0.2, 0.3]]
try: Evaluator('msp', id_name='other')
except ValueError as error: assert str(error) == 'not supported'
else: raise SystemExit('no error')
print('---')
assert Evaluator('msp').dataloader_dict == 'cifar10'
"""


def refused(code):
    """What raises a SettingError, as text; its message is in `error`."""
    caught = "except ValueError as raised: error = f'{type(raised).__name__} {raised}'"
    return f"try: {code}\n{caught}\nelse: raise SystemExit('no error')"


@pytest.fixture
def run(run: Run) -> Run:
    """With what is said of this machine left out."""
    return functools.partial(run, OPENOOD_ADASCALE_DISABLE="device")


@pytest.fixture
def yml(tmp_path):
    write_images(tmp_path / "data")
    return write_yml(tmp_path / "data" / "mine.yml", description())


@pytest.mark.parametrize("registration", [AUTOLOAD, REGISTER], ids=["autoload", "register"])
@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("import openood.postprocessors", ""), ("from openood.evaluation_api import Evaluator", "")],
)
def test_by_the_variable_in_any_import_order(run: Run, yml, registration, before, after) -> None:
    done = run(before, registration, after, CHECK, **{VARIABLE: str(yml)})
    assert done.stderr == ""
    first, _, second = done.stdout.partition("---")
    assert ("downloaded" in first, second.split()) == (False, ["downloaded", "cifar10"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_in_python(run: Run, yml, when) -> None:
    steps = [f"import openood_adascale; assert openood_adascale.register_dataset({str(yml)!r}) == 'mine'"]
    imports = "from openood.evaluation_api import Evaluator, datasets"
    steps = [*steps, imports] if when == "before" else [imports, *steps]
    restored = """
kept = [datasets.data_setup]
openood_adascale.unregister()
assert state() == before
kept[0]('', 'mine')
"""
    remember = "import openood.pipelines, openood.evaluation_api"
    if when == "after":
        steps = [STATE, remember, "before = state()", *steps]
    done = run(*steps, CHECK, *([restored] if when == "after" else []))
    assert done.stderr == ""
    if when == "after":  # a copy out of reach works as the original again
        assert done.stdout.split()[-2:] == ["downloaded", "mine"]


def test_unregister_undoes_what_came_by_the_variable(run: Run, yml) -> None:
    run(
        REGISTER,
        CHECK,
        STATE,
        "openood_adascale.unregister(); import openood.pipelines; before = state()",
        "assert 'mine' not in datasets.DATA_INFO and not hasattr(datasets.data_setup, '__wrapped__')",
        refused("Evaluator('msp', id_name='mine')"),
        "openood_adascale.register(); assert state() != before",
        CHECK,
        "openood_adascale.unregister(); assert state() == before",
        **{VARIABLE: str(yml)},
    )


def test_nothing_is_changed_without_one(run: Run) -> None:
    run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator, datasets, preprocessor",
        "assert not hasattr(datasets.data_setup, '__wrapped__')",
        "assert not hasattr(preprocessor.get_default_preprocessor, '__wrapped__')",
        "assert list(datasets.DATA_INFO) == ['cifar10']",
        "assert not {'yaml', 'openood_adascale.plugin.own_data'} & {*sys.modules}",
        ordinary=True,
    )


def test_a_later_description_replaces_an_earlier_one(run: Run, yml) -> None:
    (yml.parent / "images" / "test.txt").write_text("test/dog/0.png 3")
    again = f"""
import yaml
content = yaml.safe_load(open({str(yml)!r}))
os.chdir({str(yml.parent)!r})
import openood.postprocessors
"""
    run(
        "import os, openood_adascale",
        f"openood_adascale.register_dataset({str(yml)!r})",
        "from openood.evaluation_api import Evaluator, datasets",
        again,
        "Evaluator('msp', id_name='mine')",
        "openood_adascale.register_dataset({**content, 'classes': 4, 'id': {'test': 'images/test.txt'}})",
        "assert openood.postprocessors.info.num_classes_dict['mine'] == 4",
        "assert datasets.DATA_INFO['mine']['num_classes'] == 4",
        "assert Evaluator('msp', id_name='mine').dataloader_dict['id']['test'].dataset.files.labels == [3]",
        "openood_adascale.unregister()",
        "assert 'mine' not in openood.postprocessors.info.num_classes_dict",
        "assert 'mine' not in datasets.DATA_INFO",
    )


@pytest.mark.parametrize("first", ["registered", "imported"])
def test_names_that_openood_has(run: Run, yml, first) -> None:
    write_yml(yml, {**description(), "name": "cifar10"})
    imports = "from openood.evaluation_api import Evaluator, datasets"
    call = f"openood_adascale.register_dataset({str(yml)!r})"
    told = "assert error.startswith('SettingError') and \"name: 'cifar10'\" in error and 'does not have' in error, error"
    unharmed = "assert datasets.DATA_INFO['cifar10'] == {'num_classes': 10}"
    if first == "imported":
        done = run(
            REGISTER,
            imports,
            refused(call),
            told,
            unharmed,
            "assert Evaluator('msp').dataloader_dict == 'cifar10'",
        )
    else:
        done = run(REGISTER, call, imports, refused("Evaluator('msp', id_name='cifar10')"), told, unharmed)
    assert done.stderr.count("\n") == 1
    assert "mine.yml: name: 'cifar10'" in done.stderr


def test_the_variables_errors(run: Run, yml, tmp_path) -> None:
    """They are said; whoever asks for that data set meets them, and nobody else."""
    broken = write_yml(yml.parent / "broken.yml", {**description(), "name": "broken", "clases": 3})
    once, twice = (
        write_yml(yml.parent / f"{name}.yml", {**description(), "name": "two"}) for name in ("once", "twice")
    )
    value = os.pathsep.join(map(str, (broken, yml, once, twice, tmp_path / "none.yml", "")))
    done = run(
        REGISTER,
        CHECK.replace("'not supported'", "str(error)"),
        refused("Evaluator('msp', id_name='broken')"),
        f"assert error.startswith('SettingError {VARIABLE}: ') and 'broken.yml: clases: 3' in error, error",
        refused("Evaluator('msp', id_name='two')"),
        "assert 'expected another name' in error, error",
        **{VARIABLE: value},
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith(f"openood-adascale: {VARIABLE}: ") for line in lines)
    assert "clases" in lines[0]
    assert "none.yml" in lines[1]
    assert f"twice.yml: name: 'two' is not allowed; expected another name, since {once} has it" in lines[2]


def test_a_preset_that_openood_does_not_have(run: Run, yml) -> None:
    write_yml(yml, {**description(), "preprocessing": "cifar11"})
    done = run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator",
        refused("Evaluator('msp', id_name='mine')"),
        'assert "mine.yml: preprocessing: \'cifar11\'" in error and "presets (cifar10)" in error, error',
        "Evaluator('msp')",
        "import openood_adascale",
        refused(f"openood_adascale.register_dataset({str(yml)!r})"),
        "assert \"mine.yml: preprocessing: 'cifar11'\" in error, error",
        **{VARIABLE: str(yml)},
    )
    assert done.stderr == ""


def test_switched_off(run: Run, yml) -> None:
    done = run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator, datasets",
        "assert list(datasets.DATA_INFO) == ['cifar10']",
        "import openood_adascale",
        refused(f"openood_adascale.register_dataset({str(yml)!r})"),
        "assert 'OPENOOD_ADASCALE_DISABLE' in error",
        OPENOOD_ADASCALE_DISABLE="register",
        **{VARIABLE: str(yml)},
    )
    assert done.stderr == ""


def test_what_attacks_and_fsood_ask_for(run: Run, yml) -> None:
    run(
        REGISTER,
        "from openood.evaluation_api import Evaluator, preprocessor",
        refused("preprocessor.get_default_preprocessor('mine', att=True)"),
        "assert 'att: True' in error",
        refused("Evaluator('msp', id_name='mine').eval_ood(fsood=True)"),
        "assert 'mine.yml: csid: None' in error",
        "try: Evaluator('msp').eval_ood(True)\nexcept NotImplementedError: pass",
        **{VARIABLE: str(yml)},
    )


def test_another_version_of_openood(run: Run, yml, fake) -> None:
    path = fake / "evaluation_api" / "datasets.py"
    path.write_text(path.read_text().replace("id_data_name", "id_data"))
    done = run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator",
        "assert Evaluator('adascale').dataloader_dict == 'cifar10'",
        **{VARIABLE: str(yml)},
    )
    run(
        "from openood.evaluation_api import Evaluator",
        f"import openood_adascale\ntry: openood_adascale.register_dataset({str(yml)!r})",
        "except TypeError as raised: assert \"no parameter 'id_data_name'\" in str(raised)",
        "else: raise SystemExit('no error')",
        refused("Evaluator('msp', id_name='mine')"),
        "assert error.endswith('not supported')",
    )
    assert done.stderr.count("\n") == 1
    assert "openood.evaluation_api.datasets" in done.stderr
    assert "no parameter 'id_data_name'" in done.stderr


def test_spawned_workers_read_the_variable_silently(run: Run, yml, tmp_path) -> None:
    done = run(
        f"""
        import multiprocessing
        {AUTOLOAD}
        import openood.evaluation_api

        def work(_):
            assert 'mine' in sys.modules['openood.evaluation_api.datasets'].DATA_INFO
            print('worker', flush=True)

        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                pool.map(work, [0])
        """,
        **{VARIABLE: os.pathsep.join([str(yml), str(tmp_path / "none.yml")])},
    )
    assert "worker" in done.stdout
    assert done.stderr.count("none.yml") == 1, done.stderr
