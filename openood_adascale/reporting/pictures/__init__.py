"""The pictures of a report, as Matplotlib figures: no pyplot, no global state, colour-blind safe."""

from .style import Figure, colours, png  # isort: skip  (first: says what to do without Matplotlib)
from .methods import methods
from .pairs import agreement
from .scores import distributions, histograms, rocs
from .searches import search_map

__all__ = [
    "Figure",
    "agreement",
    "colours",
    "distributions",
    "histograms",
    "methods",
    "png",
    "rocs",
    "search_map",
]
