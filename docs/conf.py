"""How the documentation is built."""

project = "unerase"
author = "The unerase developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"description": "Was the concept erased, or only hidden?", "page_width": "1080px"}
exclude_patterns: list[str] = []
