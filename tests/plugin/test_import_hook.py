"""The import hook, with an imitation of OpenOOD in fresh processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from openood_support import AUTOLOAD, CHECK, REGISTER, UNREGISTERED, Run


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
        REGISTER,
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
        REGISTER,
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


def test_lazily_loaded_module_is_patched(run: Run) -> None:
    run(
        REGISTER,
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


def test_finders_of_other_hooks_are_asked(run: Run) -> None:
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


@pytest.mark.parametrize("registration", [AUTOLOAD, REGISTER], ids=["autoload", "register"])
def test_half_initialised_module_is_patched_when_complete(run: Run, fake: Path, registration: str) -> None:
    module = fake / "evaluation_api" / "postprocessor.py"
    module.write_text(f"{registration}\n{module.read_text()}")
    run(CHECK)


def test_module_that_fails_while_pending_is_forgotten(run: Run, fake: Path) -> None:
    (fake / "broken.py").write_text(f"{REGISTER}\nraise RuntimeError\n")
    done = run(
        """
        try:
            import openood.broken
        except RuntimeError:
            pass
        import tabnanny
        from openood_adascale.plugin.import_hook import FINDER
        assert not FINDER.pending
        """,
        CHECK,
    )
    assert done.stderr == ""
