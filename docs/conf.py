"""
The site of these pages: `sphinx-build -W --keep-going -n docs docs/_build`, with the dependency group `docs`.

The same files are read where the repository is shown, so they stay plain Markdown: what only the site needs stands
here, and in the toctrees of index.md.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = author = "logsluice"
release = version = importlib.metadata.version("logsluice")
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"logsluice {release}"
html_copy_source = html_show_sourcelink = html_show_copyright = False
smartquotes = False  # what stands in quotes is mostly a value to be written so

myst_heading_anchors = 3  # the depth that links go to; a link to a heading that is not there is a warning, so an error
# Drawn by a script that the reader's browser loads from a CDN; without it the text of the diagram is shown.
myst_fence_as_directive = ["mermaid"]
mermaid_fullscreen = False
# Highlighting says this of blocks that are cut with an ellipsis, as JSON and tracebacks on pages are.
suppress_warnings = ["misc.highlighting_failure"]

# The blocks that are files, by whose title the tests know them (tests/support/howto.py), show it as a caption.
TITLED = re.compile(r'^```(\w+) title="([^"\n]+)"$', re.MULTILINE)
UNKNOWN = re.compile(r"^```(?:\{code-block\} )?(crontab)$", re.MULTILINE)  # languages that Pygments does not know


# `howto/*` in a toctree: the pages in the order in which that folder's own list names them.
LISTS = {"howto": "howto/README.md", "explanation": "explanation/index.md"}


def _listed(found: re.Match[str]) -> str:
    text = (Path(__file__).parent / LISTS[found[1]]).read_text(encoding="utf-8")
    return "\n".join(f"{found[1]}/{page}" for page in dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md\)", text)))


def _read(_app: Sphinx, page: str, source: list[str]) -> None:
    text = TITLED.sub(r"```{code-block} \1\n:caption: \2\n", source[0])
    text = UNKNOWN.sub(lambda found: found[0].replace(found[1], "text"), text)
    source[0] = re.sub(r"^(\w+)/\*$", _listed, text, flags=re.MULTILINE) if page == "index" else text


def setup(app: Sphinx) -> None:
    """Have pages changed where they are read."""
    app.connect("source-read", _read)
