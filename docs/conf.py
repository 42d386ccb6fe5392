"""How the docs are built: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from rescope._version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "rescope"
author = "The rescope developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = f"rescope {version}"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]


class Picture(SphinxDirective):
    """`{picture} name`: put a drawing of `pictures/` into the page itself, so that it has the colours of the theme."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Take in the file as it is."""
        path = Path(self.env.srcdir, "pictures", f"{self.arguments[0]}.svg")
        self.env.note_dependency(str(path))
        svg = path.read_text(encoding="utf-8")
        return [nodes.raw("", f'<div class="picture">{svg}</div>', format="html")]


def markdown_code(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Let code in docstrings be written in single backticks, as in the pages."""
    text = re.sub(r"(?<![`:])`([^`]+)`(?!`)(\w?)", literal, "\n".join(lines))
    lines[:] = text.split("\n")


def literal(found: re.Match[str]) -> str:
    """Write code as reStructuredText does; a letter that follows has to be set apart."""
    return f"``{found[1]}``\\ {found[2]}" if found[2] else f"``{found[1]}``"


def setup(app: Sphinx) -> None:
    """Hook in."""
    app.add_directive("picture", Picture)
    app.connect("autodoc-process-docstring", markdown_code)
