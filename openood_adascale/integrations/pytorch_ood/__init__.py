"""pytorch-ood: every method of this package as one of its detectors, and its detectors in ``evaluate``.

>>> from openood_adascale.integrations.pytorch_ood import AdaSCALE, adapt, penultimate_encoder
>>> scores = AdaSCALE(network, percentile=(80, 85)).fit(val_loader).predict(images)         # larger is more OOD
>>> from pytorch_ood.detector import KNN
>>> knn = adapt(KNN(penultimate_encoder(network), k=5), network)
>>> results = evaluate({"AdaSCALE": openood_adascale.AdaSCALE(network), "KNN": knn}, benchmark)

There is a class for each line of :data:`~openood_adascale.detectors.registry.METHODS`, with the name of the method's class
or, for a second line of that class, of the line's label (``AdaSCALE_L``).

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
from .detector import MethodDetector as MethodDetector
from .detector import class_names, make_class
from .features import Encoder as Encoder
from .features import penultimate_encoder as penultimate_encoder

if TYPE_CHECKING:  # made from the registry
    AdaSCALE = AdaSCALE_L = BFAct = Energy = LTS = MSP = OptFS = SCALE = MethodDetector


def __getattr__(name: str) -> Any:
    methods = class_names()
    if name == "__all__":
        return sorted(["Adapted", "MethodDetector", "adapt", "penultimate_encoder", *methods])
    if name not in methods:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = make_class(name, methods[name], __name__)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
