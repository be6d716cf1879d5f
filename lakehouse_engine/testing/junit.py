"""Results as JUnit's XML, with the elements and attributes that pytest writes (``junit_family=xunit2``)."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from lakehouse_engine.testing.suite import Result

#: characters that XML cannot hold
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, results: Sequence[Result], seconds: float) -> None:
    """One ``testcase`` a test: ``failure`` where an expectation does not hold, ``error`` where it could not run."""
    suites = ElementTree.Element("testsuites", name="lakehouse tests")
    failures = sum(not one.passed and not one.error for one in results)
    suite = ElementTree.SubElement(
        suites, "testsuite", name="lakehouse", errors=str(sum(one.error for one in results)), failures=str(failures),
        skipped="0", tests=str(len(results)), time=f"{seconds:.3f}", timestamp=datetime.now(timezone.utc).isoformat(),
        hostname=socket.gethostname())  # fmt: skip
    for one in results:
        case = ElementTree.SubElement(suite, "testcase", classname=one.file.removesuffix(".yaml").replace("/", "."),
                                      name=_legal(one.name), time=f"{one.seconds:.3f}")  # fmt: skip
        if not one.passed:
            said = ElementTree.SubElement(case, "error" if one.error else "failure",
                                          message=_legal(one.message.partition("\n")[0]))  # fmt: skip
            said.text = _legal(f"{one.file}:{one.line}: {one.message}")
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)
