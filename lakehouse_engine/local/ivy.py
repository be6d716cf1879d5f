"""Fetch jars with Ivy, which pyspark's wheel brings: no Maven needed.

From the public Maven repository, or the one whose address is in ``$LAKEHOUSE_MAVEN``; ``$https_proxy`` is heeded.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import quoteattr

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, cache_dir
from lakehouse_engine.local.java import find_java

ATTEMPTS = 3


@dataclass(frozen=True)
class Jar:
    """One line of a lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def fetch(jars: list[Jar], scratch: Path, report: Report) -> None:
    """Put every jar into ``scratch``, unverified. Raises JARS_UNREACHABLE, IVY_NOT_FOUND and Java's errors."""
    settings, ivy = scratch / "settings.xml", scratch / "ivy.xml"
    settings.write_text(_settings(), encoding="utf-8")
    ivy.write_text(_ivy(jars), encoding="utf-8")
    command = [str(find_java().binary), *_proxy(), f"-Divy.default.ivy.user.dir={scratch / 'user'}"]
    command += ["-cp", str(_ivy_jar()), "org.apache.ivy.Main", "-settings", str(settings), "-ivy", str(ivy)]
    command += ["-cache", str(scratch / "ivy"), "-retrieve", f"{scratch}/[artifact]-[revision].[ext]", "-warn"]
    reason = ""
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            report(f"fetching jars failed ({reason}); try {attempt} of {ATTEMPTS}")
            time.sleep(2**attempt)
        try:
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        except subprocess.TimeoutExpired:
            reason = "no end after 10 minutes"
            continue
        missing = [jar.file for jar in jars if not (scratch / jar.file).exists()]
        if answer.returncode == 0 and not missing:
            return
        said = [line.strip() for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
        reason = next((line for line in said if "ERROR" in line or "Exception" in line), said[-1] if said else "")
        reason = f"{len(missing)} missing, {', '.join(missing[:3])}; Ivy says: {reason or 'nothing'}"
    raise RunError(
        "JARS_UNREACHABLE",
        f"could not fetch jars in {ATTEMPTS} tries ({reason}); check the network and https_proxy, name a mirror in"
        f" LAKEHOUSE_MAVEN, or copy {cache_dir()} from a machine that has it",
    )


def _settings() -> str:
    mirror = os.environ.get("LAKEHOUSE_MAVEN")
    root = f" root={quoteattr(mirror)}" if mirror else ""
    # Without poms there is nothing to resolve, and half as much to ask for.
    resolver = f'<ibiblio name="maven" m2compatible="true" usepoms="false"{root}/>'
    return f'<ivysettings><settings defaultResolver="maven"/><resolvers>{resolver}</resolvers></ivysettings>'


def _ivy(jars: list[Jar]) -> str:
    wanted = "".join(
        f'<dependency org="{jar.group}" name="{jar.artifact}" rev="{jar.version}" transitive="false">'
        f'<artifact name="{jar.artifact}" type="jar" ext="jar"/></dependency>'
        for jar in jars
    )
    info = '<info organisation="lakehouse" module="jars"/>'
    return f'<ivy-module version="2.0">{info}<dependencies>{wanted}</dependencies></ivy-module>'


def _proxy() -> list[str]:
    # Java does not read the variables that pip and curl do.
    address = urlsplit(os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY") or "")
    if not address.hostname:
        return []
    return [f"-Dhttps.proxyHost={address.hostname}", f"-Dhttps.proxyPort={address.port or 80}"]


def _ivy_jar() -> Path:
    spec = importlib.util.find_spec("pyspark")
    found = sorted(Path(spec.origin).parent.glob("jars/ivy-*.jar")) if spec and spec.origin else []
    if not found:
        raise RunError("IVY_NOT_FOUND", "pyspark's Ivy is missing; `pip install pyspark==4.2.0`")
    return found[-1]
