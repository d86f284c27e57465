"""How Sphinx makes a site of the pages: ``sphinx-build -W --keep-going -b html docs site``."""

from __future__ import annotations

import os

# The reference is of this package as it is written: it changes nothing in the process that reads it.
os.environ["OPENOOD_ADASCALE_DISABLE"] = "1"
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from openood_adascale import __version__

project = "openood-adascale"
author = "The developers of openood-adascale"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["openood"]
"""What a page can be made without."""
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {release}"
