"""Registration, with an imitation of OpenOOD in fresh processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from openood_support import AUTOLOAD, CHECK, REGISTER, UNREGISTERED, Run


@pytest.mark.parametrize("registration", [AUTOLOAD, REGISTER], ids=["autoload", "register"])
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


def test_copy_in_the_users_script_is_rebound(run: Run) -> None:
    run(
        """
        from openood.evaluation_api.postprocessor import get_postprocessor as mine
        original = mine
        import openood_adascale
        openood_adascale.register()
        assert type(mine('configs', 'adascale', 'cifar10')) is Ours
        openood_adascale.unregister()
        assert mine is original
        """,
    )


def test_users_yaml_file_wins(run: Run, tmp_path: Path) -> None:
    yml = tmp_path / "configs" / "postprocessors" / "adascale.yml"
    yml.parent.mkdir(parents=True)
    yml.write_text("")
    run(
        REGISTER,
        """
        import os
        from openood.evaluation_api.postprocessor import get_postprocessor
        found = get_postprocessor('configs', id_data_name='cifar10', postprocessor_name='adascale')
        assert found.config == 'configs/postprocessors/adascale.yml'
        assert found.yaml_name == 'adascale'
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
    if first == "registered":
        run(REGISTER, imports, "openood_adascale.unregister()", UNREGISTERED)
        return
    run(
        state,
        imports,
        "before = state()",
        *[REGISTER, "openood_adascale.register()", "assert state() != before"],
        *["openood_adascale.unregister(); assert state() == before"] * 2,
        "openood_adascale.register(); assert state() != before",
        CHECK,
    )


def test_unregister_leaves_what_others_have_changed(run: Run) -> None:
    run(
        REGISTER,
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
        REGISTER,
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
    run(REGISTER, "openood_adascale.unregister()", AUTOLOAD, UNREGISTERED)


def test_names_that_openood_has_are_left_alone(run: Run, fake: Path) -> None:
    for path in (fake / "evaluation_api" / "postprocessor.py", fake / "postprocessors" / "utils.py"):
        path.write_text(path.read_text().replace("{'msp'", "{'adascale': BasePostprocessor, 'msp'"))
    done = run(
        REGISTER,
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
        REGISTER,
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
        REGISTER,
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


def test_concurrent_imports_and_registrations_are_consistent(run: Run) -> None:
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
                        sys.modules['openood_adascale'].unregister()
                        sys.modules['openood_adascale'].register()
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
