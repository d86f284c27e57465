"""pytorch-ood: every method of this package as one of its detectors, and its detectors in ``evaluate``.

>>> from openood_adascale.integrations.pytorch_ood import AdaSCALE, adapt
>>> scores = AdaSCALE(network, percentile=(80, 85)).fit(val_loader).predict(images)    # larger is more out-of-distribution
>>> from pytorch_ood.detector import Entropy
>>> entropy = adapt(Entropy(network), network)
>>> results = evaluate({"AdaSCALE": openood_adascale.AdaSCALE(network), "Entropy": entropy}, benchmark)

There is a class for each line of :data:`~openood_adascale.detectors.registry.METHODS`, called as in this package, and
after its label where a class has two lines (``AdaSCALE_L``).

Raises:
    ImportError: pytorch-ood is not installed, or is too old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from pytorch_ood.api import FeaturesDetector as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"{__name__} needs pytorch-ood 0.4 or later ({error}): pip install 'openood-adascale[pytorch-ood]'",
        name="pytorch_ood",
    ) from error

from .adapted import Adapted as Adapted
from .adapted import adapt as adapt
from .classes import class_of, names
from .detector import MethodDetector as MethodDetector

if TYPE_CHECKING:  # for those who only read; what there is, the registry says
    AdaSCALE = AdaSCALE_L = BFAct = Energy = LTS = MSP = OptFS = SCALE = MethodDetector


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(["Adapted", "MethodDetector", "adapt", *names()])
    if name not in names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return class_of(name, __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
