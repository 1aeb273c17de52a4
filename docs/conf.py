"""How the site is built from these pages: `make docs`, or `sphinx-build -W -b html docs build/docs`."""

from compresskit import __version__

project = "compresskit"
release = __version__
copyright = "the authors of compresskit"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"compresskit {release}"
exclude_patterns = ["pictures/*.md"]
myst_heading_anchors = 3  # links to headings are checked, too
myst_enable_extensions = ["attrs_inline"]
