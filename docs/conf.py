"""Sphinx configuration of the site; `.ci/run` builds it with warnings as errors.

python -m sphinx -W -n -j auto docs docs/_build
"""

import importlib.metadata
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "fdjax"
author = "The fdjax authors"
copyright = "2026, The fdjax authors"
release = importlib.metadata.version("fdjax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "api_pages",
    "docstrings",  # before napoleon, whose sections it leaves as they are
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "extensions", "jupyter_execute"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}

# The notebook is one of the examples; Sphinx reads only what lies below this folder.
shutil.copyfile(HERE.parent / "examples" / "walk.ipynb", HERE / "walk.ipynb")
# Its outputs are kept in the file; `tests/docs/examples_test.py` executes it.
nb_execution_mode = "off"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Nothing is fetched, so names of other packages are not resolved.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!fdjax).*")]
autodoc_typehints_format = "short"
autodoc_default_options = {"no-value": True}
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of tuples are members as well: described once
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "fdjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}
html_theme_options = {
    "repository_url": "https://github.com/fdjax/fdjax",
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": False,
}
