"""Puts the files that stand at the top of the repository into the site, with links that hold there."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\((?:docs/)?([^)#:]+\.(?:md|png))", lambda m: f"]({PAGES.get(m[1], m[1])}", text)
        files.append(File.generated(config, page, content=text))
    return files
