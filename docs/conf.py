"""Sphinx configuration: `sphinx-build -W docs site` writes the site, which needs no network to build or to read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import zoo

project = "jax-model-zoo"
author = "The jax-model-zoo authors"
version = release = zoo.__version__
html_title = f"{project} {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "command_line",
    "mathml",
    "repository_links",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]
smartquotes = False  # they turn --options into dashes
default_role = "code"  # `name` in a docstring

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args sections name them; signatures stay readable
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Names in examples; `zoo` is what the pages import.
doctest_global_setup = "import zoo"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_use_index = False  # the Python reference is one page; nothing would link to an index
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"
