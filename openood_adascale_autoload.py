"""Makes OpenOOD know ``openood_adascale`` as soon as a program imports torch and OpenOOD.

PyTorch (2.5 and later) calls :func:`autoload` at the end of every ``import torch`` (entry point group
``torch.backends``), also for programs that never heard of OpenOOD. So this module needs only the standard
library and lets no exception out; what it calls needs no more, and does nothing but put a finder into
``sys.meta_path``. The rest of the package is imported when one of OpenOOD's modules is executed.
"""

from __future__ import annotations


def autoload() -> None:
    """The entry point; raises nothing, since an exception would break ``import torch``."""
    try:
        from openood_adascale.plugin.finder import FINDER
        from openood_adascale.plugin.process import switched_off

        if not switched_off():
            FINDER.wait(_register)
    except Exception:
        pass


def _register() -> None:
    from openood_adascale.plugin.registration import register

    register()
