"""A project of one's own: what `lakehouse init` writes into a new folder, from the files that the package brings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lakehouse_engine.errors import UsageError

_FILES = Path(__file__).parent.parent / "starter"
#: as they are called in a project; in a package, names with a dot in front are easily lost
_NAMES = {"gitignore": ".gitignore", "vscode.json": ".vscode/settings.json"}
#: what may lie in the folder before: a repository, an environment
_HARMLESS = {".git", ".venv", "venv", ".gitignore", "README.md", "LICENSE"}


def is_project(root: Path) -> bool:
    return (root / "pipelines").is_dir()


def write(root: Path, schemas: dict[str, str]) -> list[Path]:
    """Writes a small project and returns its files; what is there stays as it is.

    ``schemas``: name and text, for ``schema/``. Raises ``UsageError`` FOLDER_IN_USE when other things are there.
    """
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    strange = [name for name in there if name not in _HARMLESS]
    if strange or root.is_file():
        raise UsageError("FOLDER_IN_USE", f"{strange[0] if strange else 'a file'} is there already; name a new folder:"
                         " lakehouse init NAME", where=str(root))  # fmt: skip
    made = []
    for path, text in [*_files(root.resolve().name), *((f"schema/{name}", text) for name, text in schemas.items())]:
        file = root / path
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        made.append(file)
    return made


def _files(name: str) -> Iterator[tuple[str, str]]:
    for file in sorted(_FILES.rglob("*")):
        if file.is_file():
            path = file.relative_to(_FILES).as_posix()
            text = file.read_text(encoding="utf-8")
            yield _NAMES.get(path, path), text.replace("# NAME", f"# {name}") if path == "README.md" else text
