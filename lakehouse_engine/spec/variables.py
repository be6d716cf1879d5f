"""``${UPPER}`` from the process environment, ``${lower}`` from an environment's ``vars``; ``${x:-default}``; ``$${``.

Values go into string leaves after parsing, so a value can never change the shape of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

#: called with path, code and message
Report = Callable[[str, str, str], None]
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.S)
#: could end the text or the expression around it
_UNSAFE = re.compile(r"['\"`;\\\n]|--|/\*")


def substitute(value: Any, path: str, known: Mapping[str, Any], process: Mapping[str, str], report: Report) -> Any:
    """The value with references replaced. Reports UNSET_VARIABLE, BAD_VARIABLE; then the text stays as it is."""
    if isinstance(value, dict):
        return {k: substitute(v, f"{path}.{k}" if path else k, known, process, report) for k, v in value.items()}
    if isinstance(value, list):
        return [substitute(v, f"{path}[{i}]", known, process, report) for i, v in enumerate(value)]
    return _text(value, path, known, process, report) if isinstance(value, str) and "${" in value else value


def _text(text: str, path: str, known: Mapping[str, Any], process: Mapping[str, str], report: Report) -> Any:
    parts: list[Any] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        parts += [text[end : match.start()]] if match.start() > end else []
        end = match.end()
        if match[0] == "$${":
            parts.append("${")
            continue
        name = _NAME.fullmatch(match[1]) if match[0].endswith("}") else None
        if name is None or name[1] not in (name[1].upper(), name[1].lower()):
            report(path, "BAD_VARIABLE", f"`{match[0]}`: write ${{name}} or ${{name:-default}} in upper or in lower case;"
                   " $${ is a literal ${")  # fmt: skip
            return text
        found = process.get(name[1]) if name[1] == name[1].upper() else known.get(name[1])
        if found is None or (found == "" and name[2]):
            if not name[2]:
                source = "the process environment" if name[1] == name[1].upper() else "the environment's vars"
                report(path, "UNSET_VARIABLE", f"{name[1]} is not set in {source} and has no default")
                return text
            found = name[3]
        elif _in_expression(path) and _UNSAFE.search(str(found)):
            report(path, "BAD_VARIABLE", f"the value of {name[1]} holds a quote, a comment or ; and stands in an expression")
            return text
        parts.append(found)
    if end < len(text):
        parts.append(text[end:])
    return parts[0] if len(parts) == 1 else "".join(str(p).lower() if isinstance(p, bool) else str(p) for p in parts)


def _in_expression(path: str) -> bool:
    """Steps are made of expressions and names, where a quote has no place; accepted values are data."""
    return path.startswith(("transforms", "checks")) and ".accepted_values." not in path
