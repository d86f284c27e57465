"""Entry point that registers ``openood_adascale`` with OpenOOD once a program imports torch and OpenOOD.

PyTorch (2.5 and later) calls :func:`autoload` at the end of every ``import torch`` (entry point group
``torch.backends``), in programs without OpenOOD, too. So this module needs only the standard library and raises
nothing; it does nothing but put a finder into ``sys.meta_path``. The rest of the package is imported when one of
OpenOOD's modules is executed.
"""

from __future__ import annotations


def autoload() -> None:
    """Install the import hook; raises nothing, since an exception would break ``import torch``."""
    try:
        from openood_adascale.plugin.import_hook import FINDER, switched_off

        if not switched_off():
            FINDER.wait(_register)
    except Exception:
        pass


def _register() -> None:
    from openood_adascale.plugin.registration import register

    register()
