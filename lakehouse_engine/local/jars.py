"""The jars that pyspark's wheel lacks: fetched once by exact version, verified by SHA-256, kept in a cache.

``engine.lock`` and ``broker.lock`` list every jar, so nothing is resolved at run time. They are fetched with Ivy, which
pyspark brings, from the public Maven repository or the one named by ``$LAKEHOUSE_MAVEN``; a proxy is taken from
``$https_proxy``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import quoteattr

from lakehouse_engine.errors import RunError
from lakehouse_engine.local.files import Report, cache_dir, locked, silent, write_atomically
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


def engine_jars(report: Report = silent) -> list[Path]:
    """Delta, Kafka and PostgreSQL for Spark, on top of pyspark's own jars. Raises as ``fetched`` does."""
    return fetched("engine", report)


def broker_jars(report: Report = silent) -> list[Path]:
    """Everything the local Kafka broker runs on. Raises as ``fetched`` does."""
    return fetched("broker", report)


def engine_dir() -> Path:
    """The folder that holds exactly the engine's jars once ``engine_jars`` has run: ``DIR/*`` is a class path."""
    return _folder("engine")


def fetched(name: str, report: Report = silent) -> list[Path]:
    """The verified jars of ``<name>.lock``. Raises JAR_CHECKSUM, JAR_UNEXPECTED, JARS_UNREACHABLE and Java's errors."""
    jars, folder = read_lock(name), _folder(name)
    if _stamped(folder, jars):
        pass
    elif not os.access(folder.parent, os.W_OK):
        _verify_read_only(folder, jars)
    else:
        busy = RunError("JARS_BUSY", "another process has been fetching jars for 15 minutes", where=str(folder))
        with locked(folder.with_suffix(".lock"), deadline=900, busy=busy, report=report):
            if not _stamped(folder, jars):
                _complete(name, folder, jars, report)
    return [folder / jar.file for jar in jars]


def read_lock(name: str) -> list[Jar]:
    """The jars of ``<name>.lock``, one a line: ``group:artifact:version sha256``."""
    lines = Path(__file__).with_name(f"{name}.lock").read_text(encoding="utf-8").splitlines()
    fields = [re.split("[: ]", line) for line in lines if line and not line.startswith("#")]
    return [Jar(group, artifact, version, sha256) for group, artifact, version, sha256 in fields]


def _folder(name: str) -> Path:
    # A changed lock file is another folder: two versions of this package can share the cache.
    lock = Path(__file__).with_name(f"{name}.lock").read_bytes()
    return cache_dir() / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"


def _stat(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    # Whole seconds: image layers and archives keep no more.
    return [found.st_size, int(found.st_mtime)]


def _stamped(folder: Path, jars: list[Jar]) -> bool:
    """Whether nothing has changed since the jars were hashed. Hashing 70 MB at every start would cost 0.3 s."""
    try:
        stamp = json.loads(folder.with_suffix(".verified").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(stamp == {jar.file: _stat(folder / jar.file) for jar in jars}) and not _unexpected(folder, jars)


def _unexpected(folder: Path, jars: list[Jar]) -> set[str]:
    return {path.name for path in folder.glob("*.jar")} - {jar.file for jar in jars}


def _complete(name: str, folder: Path, jars: list[Jar], report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    strangers = _unexpected(folder, jars)
    if strangers:
        names = ", ".join(sorted(strangers))
        raise RunError(
            "JAR_UNEXPECTED", f"delete {names}: not in {name}.lock, yet on the class path", where=str(folder)
        )
    present = [jar for jar in jars if (folder / jar.file).exists()]
    for jar in present:
        _verify(jar, folder / jar.file)
    missing = [jar for jar in jars if jar not in present]
    if missing:
        report(f"fetching {len(missing)} jars for the {name} into {folder} (once, up to a minute)")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            _fetch(missing, Path(scratch), report)
            for jar in missing:
                _verify(jar, Path(scratch, jar.file))
            for jar in missing:
                os.replace(Path(scratch, jar.file), folder / jar.file)
    stamp = {jar.file: _stat(folder / jar.file) for jar in jars}
    write_atomically(folder.with_suffix(".verified"), json.dumps(stamp))


def _verify_read_only(folder: Path, jars: list[Jar]) -> None:
    """A cache that came with an image: hash it at every start, since no stamp can be left."""
    if _unexpected(folder, jars) or not all((folder / jar.file).exists() for jar in jars):
        raise RunError(
            "CACHE_UNWRITABLE",
            "the cache is read-only and lacks jars or has others; set LAKEHOUSE_CACHE to a folder you may write",
            where=str(folder),
        )
    for jar in jars:
        _verify(jar, folder / jar.file)


def _verify(jar: Jar, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != jar.sha256:
        raise RunError(
            "JAR_CHECKSUM",
            f"SHA-256 of {jar.file} is {digest}, expected {jar.sha256}: damaged, or not the one published;"
            " delete it if it is there and start again, and do not use it if that does not help",
            where=str(path),
        )


def _fetch(jars: list[Jar], scratch: Path, report: Report) -> None:
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
