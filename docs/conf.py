"""Settings of the documentation site; `scripts/docs.sh` builds it."""

import sys
from pathlib import Path

import prunelit

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "prunelit"
author = "prunelit contributors"
copyright = "prunelit contributors"
version = release = prunelit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_build"]

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may start with a figure

# Docstrings
autodoc_member_order = "alphabetical"
autodoc_inherit_docstrings = False  # the base class's page has them
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Formula", "Source"]
autosummary_generate = False
# `name` in a docstring becomes a link where it names something of the site.
default_role = "py:obj"
# What an author refers to by a name that starts with `prunelit.` must be found. Other names in
# single backticks are arguments and options. Types of signatures (py:class) become links where
# they have a page; many belong to libraries whose pages are not on this machine.
nitpick_ignore_regex = [(r"py:class", r".*"), (r"py:.*", r"(?!prunelit\.).*")]

# Look
html_theme = "furo"
html_title = "prunelit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
