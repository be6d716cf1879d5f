"""What is written of models where they stand: their docstrings, and what each option says of itself.

An option is described on the field, by ``Field(description=...)`` or by the ``#:`` lines above it. Both are read from
the source when a schema or the reference is made, so that a start pays nothing for them.
"""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from lakehouse_engine.component import Model

_FIELD = re.compile(r"    (\w+)\s*:")


def described(kind: type[BaseModel]) -> dict[str, str]:
    """Option (as files write it) to its description; options that have none are missing."""
    comments: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if issubclass(owner, Model) and owner is not Model:
            comments |= _comments(owner)
    texts = {info.alias or name: info.description or comments.get(name) for name, info in kind.model_fields.items()}
    return {name: _sentence(text) for name, text in texts.items() if text}


@lru_cache(maxsize=256)
def _comments(owner: type) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(owner).splitlines():
        text = line.strip()
        match = _FIELD.match(line)
        if text.startswith("#:"):
            above.append(text.removeprefix("#:").strip())
        else:
            if match and above:
                found[match[1]] = " ".join(above)
            above = []
    return found


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:] if not text.startswith("`") else text
    text = text.replace("``", "`")
    return text if text.endswith((".", "?", "!")) else f"{text}."


def summary(kind: type) -> str:
    """The docstring's first paragraph in one line."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`")


def models_of(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and all that its options are made of."""
    found: list[type[BaseModel]] = [kind]
    for model in found:
        for info in model.model_fields.values():
            found += [one for one in types_of(info.annotation)
                      if isinstance(one, type) and issubclass(one, BaseModel) and one not in found]  # fmt: skip
    return found


def types_of(annotation: Any) -> list[Any]:
    return [annotation, *[one for inner in getattr(annotation, "__args__", ()) for one in types_of(inner)]]
