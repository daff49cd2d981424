"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import vmdump

project = "vmdump"
author = "vmdump developers"
copyright = author
version = release = vmdump.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "from_vmdump",
]
exclude_patterns = ["_extensions"]
html_theme = "furo"
html_title = f"vmdump {release}"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections have them, with shapes and units
# "path" in "str or path" is a word, and no attribute of this name.
suppress_warnings = ["ref.python"]
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
