"""PyTorch's autoload of the plugin, and ``OPENOOD_ADASCALE_DISABLE``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from openood_support import AUTOLOAD, CHECK, REGISTER, UNREGISTERED, Run


@pytest.mark.parametrize("value", ["1", "TRUE", "register, all"])
def test_disable_all_leaves_the_process_alone(run: Run, value: str) -> None:
    done = run(
        "finders = list(sys.meta_path)",
        AUTOLOAD,
        REGISTER,
        "openood_adascale.register()",
        "assert sys.meta_path == finders",
        UNREGISTERED,
        OPENOOD_ADASCALE_DISABLE=value,
    )
    assert done.stderr == ""


def test_disable_register_leaves_the_tables_alone(run: Run) -> None:
    run(AUTOLOAD, UNREGISTERED, OPENOOD_ADASCALE_DISABLE="register")


@pytest.mark.parametrize("value", ["", "0", " Device ,stubs"])
def test_other_values_of_disable_still_register(run: Run, value: str) -> None:
    assert run(AUTOLOAD, CHECK, OPENOOD_ADASCALE_DISABLE=value).stderr == ""


def test_unknown_word_is_printed_once_and_ignored(run: Run) -> None:
    done = run(
        AUTOLOAD, REGISTER, CHECK, "openood_adascale.register()", OPENOOD_ADASCALE_DISABLE="regster,device"
    )
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert "OPENOOD_ADASCALE_DISABLE" in line
    assert "'regster'" in line


@pytest.mark.parametrize("broken", ["registration", "postprocessor"])
def test_broken_installation_leaves_openood_as_it_is(run: Run, broken: str) -> None:
    module = f"openood_adascale.plugin.{broken}"
    check = """
        from openood.evaluation_api import Evaluator, postprocessor
        assert list(postprocessor.postprocessors) == ['msp'] and Evaluator('msp')
        """
    done = run(f"import sys; sys.modules[{module!r}] = None", AUTOLOAD, check, ours=False)
    assert done.stderr.count("\n") == 1, done.stderr
    assert module in done.stderr


@pytest.mark.parametrize("broken", ["openood_adascale", "openood_adascale.plugin.import_hook"])
def test_broken_package_does_not_break_import_torch(run: Run, broken: str) -> None:
    done = run(f"import sys; sys.modules[{broken!r}] = None", AUTOLOAD, UNREGISTERED, ours=False)
    assert done.stderr == ""


def test_autoload_is_inert_without_openood(run: Run) -> None:
    done = run(
        f"""
        import sys
        before, finders = set(sys.modules), list(sys.meta_path)
        {AUTOLOAD}
        new = set(sys.modules) - before
        ours = {{name for name in new if name.startswith('openood_adascale')}}
        assert {{name.partition('.')[0] for name in new - ours}} <= sys.stdlib_module_names, new
        package = ['', '._version', '.plugin', '.plugin.import_hook']
        assert ours == {{'openood_adascale_autoload', *('openood_adascale' + name for name in package)}}, ours
        from openood_adascale.plugin.import_hook import FINDER
        assert [f for f in sys.meta_path if f not in finders] == [FINDER]
        import importlib.util, tabnanny
        assert importlib.util.find_spec('openood') and importlib.util.find_spec('no_such_package') is None
        assert 'openood_adascale.plugin.registration' not in sys.modules
        """,
        ours=False,
    )
    assert done.stderr == ""


def test_importing_the_package_changes_nothing_and_needs_no_torch(run: Run) -> None:
    run(
        "import sys; before = list(sys.meta_path)",
        "import openood_adascale, openood_adascale.plugin.registration",
        "assert sys.meta_path == before",
        "assert not {'torch', 'numpy', 'openood', 'multiprocessing'} & set(sys.modules)",
        ours=False,
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_import_torch_is_enough_unless_autoload_is_off(run: Run, enabled: bool) -> None:
    pytest.importorskip("torch", minversion="2.5")
    if "openood_adascale" not in {e.name for e in importlib.metadata.entry_points(group="torch.backends")}:
        pytest.skip("the package is not installed, so torch does not know of it")
    code = """
        assert 'openood_adascale.plugin.registration' not in sys.modules
        assert not sys.modules.get('openood_adascale_autoload') or not torch.cuda.is_initialized()
        """
    disabled = {} if enabled else {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run("import torch", code, CHECK if enabled else UNREGISTERED, **disabled)


def test_autoload_costs_import_torch_at_most_five_milliseconds(run: Run, tmp_path: Path) -> None:
    code = f"""
        import sys, time

        def once():
            for name in [name for name in sys.modules if name.startswith('openood_adascale')]:
                del sys.modules[name]
            sys.meta_path[:] = finders
            start = time.process_time()
            {AUTOLOAD}
            return 1000 * (time.process_time() - start)

        finders = list(sys.meta_path)
        milliseconds = min(once() for _ in range(10))
        assert milliseconds < 5, milliseconds
        """
    run(code, ours=False, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path / "bytecode"))
