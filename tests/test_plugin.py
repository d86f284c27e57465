"""Registration, against a small fake of OpenOOD, in fresh processes and mostly without torch."""

from __future__ import annotations

import importlib.metadata
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
        from .postprocessor import get_postprocessor

        class Evaluator:
            def __init__(self, name):
                self.postprocessor = get_postprocessor('configs', name, 'cifar10')
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
    "postprocessors/utils.py": """
        from .base import BasePostprocessor

        def get_postprocessor(config):
            postprocessors = {'msp': BasePostprocessor}
            return postprocessors[config.postprocessor.name](config)
        """,
    "pipelines.py": "from openood.postprocessors import get_postprocessor\n",
}

# Before anything else: classes of ours that do not need the real OpenOOD.
OURS = """
import sys, types
ours = sys.modules['openood_adascale.postprocessor'] = types.ModuleType('openood_adascale.postprocessor')
class Ours:
    def __init__(self, config):
        self.config = config
ours.POSTPROCESSORS = {'adascale': Ours}
def config(name):
    return types.SimpleNamespace(postprocessor=types.SimpleNamespace(name=name))
"""

AUTOLOAD = "import openood_adascale_autoload; openood_adascale_autoload.autoload()"
PACKAGE = "import openood_adascale"

CHECK = """
import colorsys  # any import: what was half-initialised is looked at again
import os, openood.evaluation_api as api, openood.postprocessors as pp, openood.pipelines
from openood.evaluation_api import evaluator, postprocessor
assert postprocessor.postprocessors['adascale'] is Ours
assert evaluator.get_postprocessor is postprocessor.get_postprocessor
assert not hasattr(postprocessor.get_postprocessor.__wrapped__, '__wrapped__')
found = api.Evaluator('adascale').postprocessor
assert type(found) is Ours
assert found.yml_source == (os.path.abspath('configs'), 'adascale', 'cifar10')
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
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=env | {"PYTHONPATH": path} | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.mark.parametrize("registration", [AUTOLOAD, PACKAGE], ids=["autoload", "package"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("", "import openood.postprocessors"),
        ("", "from openood.postprocessors.utils import get_postprocessor"),
        ("import openood", ""),
        ("import openood.postprocessors", ""),
        ("import openood.pipelines", "from openood.evaluation_api import Evaluator"),
        ("from openood.evaluation_api import Evaluator", "import openood.pipelines"),
        ("import openood.pipelines, openood.evaluation_api", ""),
    ],
)
def test_any_import_order(run: Run, registration: str, before: str, after: str) -> None:
    assert run(before, registration, after, CHECK).stderr == ""


def test_both_ways_of_registration_at_once(run: Run) -> None:
    run(AUTOLOAD, PACKAGE, AUTOLOAD, "openood_adascale.register()", CHECK)


def test_autoload_is_inert_without_openood(run: Run) -> None:
    done = run(
        f"""
        import sys
        before, finders = set(sys.modules), list(sys.meta_path)
        {AUTOLOAD}
        new = set(sys.modules) - before - {{'openood_adascale_autoload'}}
        assert {{name.partition('.')[0] for name in new}} <= sys.stdlib_module_names, new
        assert [f for f in sys.meta_path if f not in finders] == [openood_adascale_autoload.FINDER]
        import importlib.util, colorsys
        assert importlib.util.find_spec('openood') and importlib.util.find_spec('no_such_package') is None
        assert 'openood_adascale' not in sys.modules
        """,
        ours=False,
    )
    assert done.stderr == ""


def test_importing_the_package_needs_neither_torch_nor_numpy_nor_openood(run: Run) -> None:
    run(
        "import sys, openood_adascale, openood_adascale.plugin",
        "assert not {'torch', 'numpy', 'openood', 'multiprocessing'} & set(sys.modules)",
        ours=False,
    )


def test_probing_changes_nothing(run: Run, fake: Path) -> None:
    (fake / "evaluation_api" / "__init__.py").write_text("")  # find_spec imports the parents
    run(
        AUTOLOAD,
        """
        import importlib.util, openood.evaluation_api
        name = 'openood.evaluation_api.postprocessor'
        spec = importlib.util.find_spec(name)
        assert name not in sys.modules
        assert 'openood.postprocessors' not in sys.modules
        loader = spec.loader
        assert 'get_postprocessor' in loader.get_source(name) and not loader.is_package(name)
        assert loader.get_code(name) and loader.get_data(spec.origin)
        assert loader.get_filename(name) == spec.origin
        import copy
        copy.copy(loader)

        # A module made from the spec by hand is one that is executed.
        module = importlib.util.module_from_spec(spec)
        assert module.__loader__ is loader
        spec.loader.exec_module(module)
        assert 'adascale' in module.postprocessors
        assert name not in sys.modules
        """,
    )


def test_modules_look_as_without_the_plugin(run: Run) -> None:
    run(
        PACKAGE,
        """
        import importlib, inspect, linecache, pickle
        from importlib.machinery import SourceFileLoader
        from openood.evaluation_api import postprocessor
        assert type(postprocessor.__loader__) is type(postprocessor.__spec__.loader) is SourceFileLoader
        assert inspect.getsource(postprocessor).lstrip().startswith('import os')
        assert inspect.getsource(postprocessor.get_postprocessor).startswith('def get_postprocessor(')
        assert list(inspect.signature(postprocessor.get_postprocessor).parameters)[0] == 'config_root'
        copied = pickle.loads(pickle.dumps(postprocessor.get_postprocessor))
        assert copied is postprocessor.get_postprocessor
        """,
    )


def test_reload_patches_again(run: Run) -> None:
    run(
        PACKAGE,
        """
        import importlib
        from openood.evaluation_api import evaluator, postprocessor
        for module in (postprocessor, evaluator):
            importlib.reload(module)
        """,
        CHECK,
        "openood_adascale.unregister()",
        UNREGISTERED,
    )


def test_lazy_loader(run: Run) -> None:
    run(
        PACKAGE,
        """
        import importlib.util, openood.postprocessors.base
        name = 'openood.evaluation_api.postprocessor'
        spec = importlib.util.find_spec(name)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        assert 'adascale' in module.postprocessors
        """,
    )


def test_other_finders_keep_their_say(run: Run) -> None:
    """A finder before ours and one after it, as of other hooks, are asked and see OpenOOD's modules."""
    run(
        """
        seen = []
        class Spy:
            def __init__(self, name): self.name = name
            def find_spec(self, name, path=None, target=None):
                if name == 'openood.pipelines': seen.append(self.name)
        sys.meta_path.insert(0, Spy('after'))
        """,
        AUTOLOAD,
        "sys.meta_path.insert(0, Spy('before'))",
        CHECK,
        "assert seen == ['before', 'after'], seen",
    )


def test_copy_in_the_users_script_is_rebound(run: Run) -> None:
    run(
        """
        from openood.evaluation_api.postprocessor import get_postprocessor as mine
        original = mine
        import openood_adascale
        assert type(mine('configs', 'adascale', 'cifar10')) is Ours
        openood_adascale.unregister()
        assert mine is original
        """,
    )


def test_users_yml_wins(run: Run, tmp_path: Path) -> None:
    yml = tmp_path / "configs" / "postprocessors" / "adascale.yml"
    yml.parent.mkdir(parents=True)
    yml.write_text("")
    run(
        PACKAGE,
        """
        import os
        from openood.evaluation_api.postprocessor import get_postprocessor
        found = get_postprocessor('configs', id_data_name='cifar10', postprocessor_name='adascale')
        assert found.config == 'configs/postprocessors/adascale.yml'
        assert found.yml_source == (os.path.abspath('configs'), 'adascale', 'cifar10')
        """,
    )


@pytest.mark.parametrize("first", ["registered", "imported"])
def test_unregister_restores_exactly(run: Run, first: str) -> None:
    imports = "import openood.pipelines, openood.evaluation_api.evaluator"
    state = """
        def state():
            modules = {n: m for n, m in sys.modules.items() if n.startswith('openood.')}
            table = modules['openood.evaluation_api.postprocessor'].postprocessors
            return {n: dict(vars(m)) for n, m in modules.items()}, dict(table), list(sys.meta_path)
        """
    if first == "imported":
        run(
            state,
            imports,
            "before = state()",
            PACKAGE,
            "assert state() != before",
            "openood_adascale.unregister(); assert state() == before",
            "openood_adascale.unregister(); assert state() == before",
            "openood_adascale.register(); assert state() != before",
            CHECK,
        )
    else:
        run(PACKAGE, imports, "openood_adascale.unregister()", UNREGISTERED)


def test_unregister_leaves_what_others_have_changed(run: Run) -> None:
    run(
        PACKAGE,
        """
        from openood.evaluation_api import evaluator, postprocessor
        evaluator.get_postprocessor = theirs = lambda *args: args
        class Theirs(Ours): pass
        postprocessor.postprocessors['adascale'] = Theirs
        assert type(postprocessor.get_postprocessor('configs', 'adascale', 'cifar10')) is Theirs
        openood_adascale.unregister()
        assert evaluator.get_postprocessor is theirs
        assert postprocessor.postprocessors['adascale'] is Theirs
        """,
    )


def test_copies_out_of_reach_work_as_the_original_after_unregister(run: Run) -> None:
    run(
        PACKAGE,
        """
        from openood.postprocessors import get_postprocessor
        from openood.evaluation_api.postprocessor import get_postprocessor as other
        holder = [get_postprocessor, other]
        openood_adascale.unregister()
        for call, *args in ([holder[0], config('adascale')], [holder[1], 'configs', 'adascale', 'cifar10']):
            try: call(*args)
            except KeyError: pass
            else: raise SystemExit('still registered')
        """,
    )


def test_torch_imported_after_unregister_does_not_register(run: Run) -> None:
    run(PACKAGE, "openood_adascale.unregister()", AUTOLOAD, UNREGISTERED)


@pytest.mark.parametrize("registration", [AUTOLOAD, PACKAGE], ids=["autoload", "package"])
def test_half_initialised_module_is_patched_when_complete(run: Run, fake: Path, registration: str) -> None:
    module = fake / "evaluation_api" / "postprocessor.py"
    module.write_text(f"{registration}\n{module.read_text()}")
    run(CHECK)


def test_module_that_fails_while_pending_is_forgotten(run: Run, fake: Path) -> None:
    (fake / "broken.py").write_text("import openood_adascale\nraise RuntimeError\n")
    done = run(
        """
        try:
            import openood.broken
        except RuntimeError:
            pass
        import openood_adascale.plugin, colorsys
        assert not openood_adascale.plugin._pending
        """,
        CHECK,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("postprocessors = {", "table = {", "postprocessors"),
        ("def get_postprocessor(", "def make(", "get_postprocessor"),
        ("config_root", "root", "config_root"),
        ("{'msp': BasePostprocessor}", "[]", "'get'"),
    ],
)
def test_another_version_works_as_before(run: Run, fake: Path, old: str, new: str, missing: str) -> None:
    module = fake / "evaluation_api" / "postprocessor.py"
    module.write_text(module.read_text().replace(old, new))
    (fake / "evaluation_api" / "__init__.py").write_text("")
    done = run(
        PACKAGE,
        """
        import importlib
        from openood.evaluation_api import postprocessor
        importlib.reload(postprocessor)
        found = getattr(postprocessor, 'postprocessors', ())
        assert 'adascale' not in found
        if hasattr(postprocessor, 'get_postprocessor'):
            assert not hasattr(postprocessor.get_postprocessor, '__wrapped__')
        from openood.postprocessors import get_postprocessor
        assert type(get_postprocessor(config('adascale'))) is Ours  # the other one is not affected
        """,
    )
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert missing in line
    assert "openood.evaluation_api.postprocessor" in line


def test_names_that_openood_has_are_left_alone(run: Run, fake: Path) -> None:
    for path in (fake / "evaluation_api" / "postprocessor.py", fake / "postprocessors" / "utils.py"):
        path.write_text(path.read_text().replace("{'msp'", "{'adascale': BasePostprocessor, 'msp'"))
    done = run(
        PACKAGE,
        """
        from openood.evaluation_api import Evaluator
        from openood.postprocessors import get_postprocessor, BasePostprocessor
        assert type(Evaluator('adascale').postprocessor) is BasePostprocessor
        assert type(get_postprocessor(config('adascale'))) is BasePostprocessor
        """,
    )
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert "'adascale'" in line


def test_error_of_a_postprocessor_of_openoods_is_not_swallowed(run: Run, fake: Path) -> None:
    path = fake / "postprocessors" / "base.py"
    path.write_text(path.read_text().replace("self.config = config", "raise KeyError('msp')"))
    run(
        PACKAGE,
        """
        from openood.postprocessors import get_postprocessor
        try:
            get_postprocessor(config('msp'))
        except KeyError:
            pass
        else:
            raise SystemExit('no error')
        """,
    )


@pytest.mark.parametrize("value", ["1", "all", "TRUE", "register, all"])
def test_everything_off(run: Run, value: str) -> None:
    done = run(
        "finders = list(sys.meta_path)",
        AUTOLOAD,
        PACKAGE,
        "openood_adascale.register()",
        "assert sys.meta_path == finders",
        UNREGISTERED,
        OPENOOD_ADASCALE_DISABLE=value,
    )
    assert done.stderr == ""


def test_registration_alone_off(run: Run) -> None:
    run(AUTOLOAD, UNREGISTERED, OPENOOD_ADASCALE_DISABLE="register")


@pytest.mark.parametrize("value", ["", "0", "device,stand-ins", " Device "])
def test_registration_on(run: Run, value: str) -> None:
    assert run(AUTOLOAD, CHECK, OPENOOD_ADASCALE_DISABLE=value).stderr == ""


def test_unknown_word_is_said_and_ignored(run: Run) -> None:
    done = run(
        AUTOLOAD, PACKAGE, CHECK, "openood_adascale.register()", OPENOOD_ADASCALE_DISABLE="regster,device"
    )
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert "OPENOOD_ADASCALE_DISABLE" in line
    assert "'regster'" in line


@pytest.mark.parametrize("broken", ["openood_adascale", "openood_adascale.postprocessor"])
def test_broken_installation_leaves_openood_as_it_is(run: Run, broken: str) -> None:
    done = run(
        f"import sys; sys.modules[{broken!r}] = None", AUTOLOAD, UNREGISTERED_BUT_FOR_PIPELINES, ours=False
    )
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert broken in line


UNREGISTERED_BUT_FOR_PIPELINES = """
from openood.evaluation_api import Evaluator, postprocessor
assert list(postprocessor.postprocessors) == ['msp'] and Evaluator('msp')
"""


def test_autoload_raises_nothing(run: Run) -> None:
    run("import openood_adascale_autoload as a; a.install = None; a.autoload()", UNREGISTERED)
    run("import openood_adascale_autoload as a; del a.switched_off; a.autoload()", UNREGISTERED)
    run(
        "import sys; sys.stderr = None",
        "import openood_adascale_autoload as a; a.say('nothing to say it to')",
    )


def test_threads(run: Run) -> None:
    done = run(
        """
        import importlib, threading
        sys.setswitchinterval(1e-6)
        errors, start = [], threading.Barrier(12)
        # Packages only: of a package and its submodule at once, Python itself can call a deadlock.
        modules = ['openood_adascale']
        modules += ['openood.' + name for name in ('evaluation_api', 'pipelines', 'postprocessors')]
        def work(i):
            start.wait()
            try:
                importlib.import_module(modules[i % 4])
                if i % 4 == 0:
                    for _ in range(50):
                        sys.modules['openood_adascale.plugin'].unregister()
                        sys.modules['openood_adascale.plugin'].register()
            except BaseException as error:
                errors.append(error)
        """,
        AUTOLOAD,
        """
        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        assert not any(t.is_alive() for t in threads) and not errors, errors
        import openood_adascale
        openood_adascale.register()
        """,
        CHECK,
        "openood_adascale.unregister()",
        UNREGISTERED,
    )
    assert done.stderr == ""


def test_spawned_workers_register_silently(run: Run) -> None:
    done = run(
        f"""
        import multiprocessing
        {AUTOLOAD}
        import openood.evaluation_api

        def work(_):
            assert 'adascale' in sys.modules['openood.evaluation_api.postprocessor'].postprocessors
            print('worker', flush=True)

        if __name__ == '__main__':
            for way in multiprocessing.get_all_start_methods():
                with multiprocessing.get_context(way).Pool(1) as pool:
                    pool.map(work, [0])
        """,
        OPENOOD_ADASCALE_DISABLE="typo",
    )
    assert "worker" in done.stdout
    assert done.stderr.count("typo") == 1, done.stderr


# --- with torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_import_torch_is_enough_unless_autoload_is_off(run: Run, enabled: bool) -> None:
    pytest.importorskip("torch", minversion="2.5")
    if "openood_adascale" not in {e.name for e in importlib.metadata.entry_points(group="torch.backends")}:
        pytest.skip("the package is not installed, so torch does not know of it")
    code = """
        assert 'openood_adascale' not in sys.modules
        assert not sys.modules.get('openood_adascale_autoload') or not torch.cuda.is_initialized()
        """
    disabled = {} if enabled else {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run("import torch", code, CHECK if enabled else UNREGISTERED, **disabled)
