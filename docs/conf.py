"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs site``."""

from __future__ import annotations

import os

# Importing the package for the API page must not register anything.
os.environ["OPENOOD_ADASCALE_DISABLE"] = "1"
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from openood_adascale import __version__

project = "openood-adascale"
author = "The developers of openood-adascale"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown with their stored outputs

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["openood", "pytorch_ood"]
add_module_names = False
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(?!openood_adascale\.).*"),  # other libraries
    ("py:class", r".*\.(S|T|InferenceOptions|FeatureCache|Pool|Adapted)"),  # type variables, internal classes
]

html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {release}"
