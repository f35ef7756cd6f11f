"""The settings of Sphinx; docs/site/build.py runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from docstrings import as_rst  # noqa: E402

import nonisotropic  # noqa: E402

project = "Nonisotropic"
author = "the authors of Nonisotropic"
version = release = nonisotropic.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"

myst_heading_anchors = 4
highlight_language = "none"  # blocks without a language are commands and formulas
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
maximum_signature_line_length = 60
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = f"Nonisotropic {release}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_domain_indices = html_use_index = False  # the search finds more, and fits a phone
html_permalinks_icon = "#"
html_theme_options: dict[str, Any] = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _replace)


def _replace(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)
