"""Where a run's services and storage are. Secrets are references, resolved late and never printed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from lakehouse_engine.component import NAME, FromText, Model, Whole
from lakehouse_engine.connections import Database
from lakehouse_engine.errors import Problem, RunError, SpecError, UsageError
from lakehouse_engine.spec import yaml
from lakehouse_engine.spec.reuse import SECRET, masked
from lakehouse_engine.spec.validated import said


def _setting(value: object) -> object:
    return str(value).lower() if isinstance(value, bool | int | float) else value


#: as in a pipeline's file: ``${NAME}``, ``${NAME:-default}``; ``$${`` is ``${`` itself
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Z_][A-Z0-9_]*)(:-([^}]*))?\}")
#: a Spark setting is text; YAML may write it as a number or a boolean
Setting = Annotated[str, BeforeValidator(_setting), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Storage = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^(?!.*://)"})]
#: of a connection among several of a kind, as a key of the file
NAMED = {kind: rf"{kind}\.({NAME.pattern})" for kind in ("kafka", "jdbc")}
JDBC_URL = "jdbc:[a-z0-9]+:.+"
Variable = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[a-z][a-z0-9_]*$"})]


class Secret(Model):
    """A secret by reference: ``{env: X}`` or ``{file: path}``."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [
        {"required": [one], "properties": {one: {"not": {"type": "null"}}}} for one in ("env", "file")]})  # fmt: skip

    #: the variable of the process environment that holds it
    env: str | None = None
    #: the file that holds it; its last line break does not belong to it
    file: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _reference(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise PydanticCustomError("LITERAL_SECRET", "a secret is {env: NAME} or {file: path}, never its value")
        return value

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise PydanticCustomError("LITERAL_SECRET", "a secret is either {env: NAME} or {file: path}")
        return self

    def resolve(self, connection: str, variables: Mapping[str, str]) -> str:
        """Raises ``RunError`` SECRET_MISSING."""
        where = f"connection {connection}"
        if self.env is not None:
            if self.env not in variables:
                raise RunError("SECRET_MISSING", f"the environment variable {self.env} is not set", where=where)
            return variables[self.env]
        try:
            return Path(self.file or "").read_text(encoding="utf-8").rstrip("\n")
        except OSError as error:
            raise RunError("SECRET_MISSING", f"{self.file} cannot be read: {error.strerror}", where=where) from None


class KafkaConnection(Model):
    """How brokers are reached."""

    #: ``host:port`` of one broker or several, with commas between
    bootstrap_servers: str


class PostgresConnection(Model):
    """How PostgreSQL is reached."""

    #: its name or address
    host: str
    #: its port
    port: Whole = 5432
    #: the database that holds the tables and the engine's ledger
    database: str
    #: who connects; needs to create schemas and tables
    user: str
    #: by reference only, never the value
    password: Secret | None = None
    #: as ``sslmode`` of PostgreSQL has it
    tls: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"


def _jdbc(url: str) -> str:
    if re.search(r"(?i)passw(or)?d=|//[^/]*:[^/]*@", url):
        raise PydanticCustomError("LITERAL_SECRET", "a password does not stand in a url: password is {env: NAME} or"
                                  " {file: path}")  # fmt: skip
    if not re.fullmatch(JDBC_URL, url):
        raise PydanticCustomError("BAD_VALUE", "url must be as the database's driver has it,"
                                  " jdbc:postgresql://host:port/database, not {url}", {"url": repr(url)})  # fmt: skip
    return url


class JdbcConnection(Model):
    """How a database of others is reached: ``jdbc.crm`` is what ``connection: crm`` names."""

    #: as its driver has it, e.g. ``jdbc:postgresql://host:5432/crm``; another driver than PostgreSQL's needs its jar
    url: Annotated[str, AfterValidator(_jdbc), WithJsonSchema({"type": "string", "pattern": f"^{JDBC_URL}$"})]
    #: who connects
    user: str | None = None
    #: by reference only, never the value
    password: Secret | None = None


class Connections(Model):
    """Services by their kind; databases of others each as ``jdbc.<name>``, other clusters as ``kafka.<name>``."""

    #: for sources and sinks ``kafka``, by the name in ``connection``; without one ``''``
    kafka: dict[str, KafkaConnection] = Field(default_factory=dict)
    #: for sinks ``postgres``, ``serve`` and the ledger
    postgres: PostgresConnection | None = None
    #: for sources and sinks ``jdbc``, by name
    jdbc: dict[str, JdbcConnection] = Field(default_factory=dict)


class Environment(Model):
    """``name`` is empty for the embedded stack; ``dsn`` is its own database, with a password that is never shown."""

    name: str = ""
    #: the folder of tables and checkpoints, on a local disk
    storage: Storage
    #: how services are reached
    connections: Connections = Connections()
    #: what ``${lower}`` stands for in pipelines that use this environment
    vars: dict[Variable, Any] = Field(default_factory=dict)
    #: settings of Spark, by their full names
    spark: dict[str, Setting] = Field(default_factory=dict)
    embedded: dict[str, str] = Field(default_factory=dict)
    #: the environment variables that files and secrets refer to: of the command, which may not be this process
    _variables: Mapping[str, str] = PrivateAttr(default_factory=lambda: os.environ)

    def __repr__(self) -> str:
        return f"Environment({self.name or 'embedded'})"

    @property
    def variables(self) -> Mapping[str, str]:
        return self._variables

    @property
    def kafka_bootstrap(self) -> str:
        """The brokers of the connection ``kafka``. Raises ``RunError`` STACK_DOWN or NO_CONNECTION."""
        return self.kafka(None)

    def kafka(self, name: str | None) -> str:
        """The brokers of the connection ``kafka.<name>``, without a name of ``kafka``.

        Raises ``RunError`` STACK_DOWN or NO_CONNECTION.
        """
        to = self.connections.kafka.get(name or "")
        if to is not None:
            return to.bootstrap_servers
        if name is None:
            return self._embedded("kafka")
        if f"kafka.{name}" in self.embedded:
            return self.embedded[f"kafka.{name}"]
        raise RunError("NO_CONNECTION", f"{self.lacks(f'kafka.{name}')}; an environment says where those brokers are",
                       where=f"connection kafka.{name}")  # fmt: skip

    def postgres_dsn(self) -> str:
        """Raises ``RunError`` STACK_DOWN, NO_CONNECTION, SECRET_MISSING."""
        to = self.connections.postgres
        if to is None:
            return self._embedded("postgres")
        from psycopg2.extensions import make_dsn

        password = {"password": to.password.resolve("postgres", self._variables)} if to.password else {}
        dsn: str = make_dsn(host=to.host, port=to.port, dbname=to.database, user=to.user, sslmode=to.tls, **password)
        return dsn

    def jdbc(self, name: str) -> Database:
        """The connection ``jdbc.<name>``. Raises ``RunError`` NO_CONNECTION, SECRET_MISSING."""
        key, to = f"jdbc.{name}", self.connections.jdbc.get(name)
        if to is not None:
            password = to.password.resolve(key, self._variables) if to.password else None
            return Database(name, to.url, to.user, password)
        if key in self.embedded:
            from psycopg2.extensions import parse_dsn

            at = parse_dsn(self.embedded[key])
            return Database(name, f"jdbc:postgresql://{at['host']}:{at['port']}/{at['dbname']}", at["user"],
                            at.get("password"))  # fmt: skip
        raise RunError("NO_CONNECTION", f"{self.lacks(key)}; an environment says where that database is",
                       where=f"connection {key}")  # fmt: skip

    @property
    def named(self) -> set[str]:
        """The connections with a name, as the file has them: ``kafka.eu``, ``jdbc.crm``."""
        here = {f"kafka.{name}" for name in self.connections.kafka if name}
        return here | {f"jdbc.{name}" for name in self.connections.jdbc} | {one for one in self.embedded if "." in one}

    def lacks(self, key: str) -> str:
        """That there is no such connection, in words."""
        there = f"environments/{self.name}.yaml has" if self.name else "the embedded stack has"
        return f"{there} no connection {key}"

    def _embedded(self, service: str) -> str:
        if service in self.embedded:
            return self.embedded[service]
        where = f"connection {service}"
        if self.name:
            raise RunError("NO_CONNECTION", f"environments/{self.name}.yaml has no connection {service}", where=where)
        raise RunError("STACK_DOWN", "the embedded stack has not been started here; start it with: lakehouse up",
                       where=where)  # fmt: skip


def load_environment(name: str | None, root: Path, variables: Mapping[str, str] = os.environ) -> Environment:
    """``environments/<name>.yaml`` below ``root``; without a name the embedded stack of ``.lakehouse/services.json``.

    In the file ``${NAME}`` and ``${NAME:-default}`` stand for environment variables.
    Raises ``UsageError`` ENVIRONMENT_MISSING, ``SpecError`` for a wrong file, ``RunError`` STACK_DOWN.
    """
    environment = _read(name, root, variables)
    environment._variables = variables
    return environment


def _read(name: str | None, root: Path, variables: Mapping[str, str]) -> Environment:
    if name is None:
        folder = root / ".lakehouse"
        services = folder / "services.json"
        try:
            found = json.loads(services.read_text(encoding="utf-8"))
            embedded = {"kafka": found["kafka"]["bootstrap_servers"], "postgres": found["postgres"]["dsn"]}
        except FileNotFoundError:
            embedded = {}
        except (ValueError, KeyError, TypeError):
            raise RunError("STACK_DOWN", "the file is damaged; start the embedded stack again with: lakehouse up",
                           where=str(services)) from None  # fmt: skip
        return Environment(storage=str(folder / "storage"), embedded=embedded)
    path = root / "environments" / f"{name}.yaml"
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not path.is_file():
        there = sorted(p.stem for p in (root / "environments").glob("*.yaml"))
        known = ", ".join(there) or "none"
        raise UsageError("ENVIRONMENT_MISSING", f"there is no environments/{name}.yaml; there are: {known}")
    shown = f"environments/{name}.yaml"
    document = yaml.read(path, shown)
    if document.problems:
        raise SpecError(document.problems)
    content, lines = document.value, document.lines

    wrong: list[tuple[str, str, str]] = []
    if not isinstance(content, dict):
        raise SpecError([Problem(shown, 1, "BAD_VALUE", "an environment is a map of storage, connections and more")])
    filled = _Filled(variables)
    content = filled.value(content, "")
    wrong += filled.unset
    reserved = [key for key in ("name", "embedded") if key in content]
    wrong += [(key, "UNKNOWN_KEY", f"{key} is not for a file to say") for key in reserved]
    if "://" in str(content.get("storage", "")):
        wrong.append(("storage", "NOT_YET", "storage other than a local path comes with a later version"))
    own = {key: value for key, value in content.items() if key not in reserved}
    if isinstance(own.get("connections"), dict):
        own["connections"], unnamed = _named(own["connections"])
        wrong += [(f"connections.{key}", "UNKNOWN_KEY", f"{key} is no connection's name: those are {_WORDS[kind]}, of"
                   " a-z, 0-9 and _") for key, kind in unnamed.items()]  # fmt: skip
        lines |= {place.replace(_PLAIN, f"{_PLAIN}.", 1): at for place, at in lines.items() if place.startswith(_PLAIN)}
    made, more = said(Environment, {"name": name, **own}, "", "", lines)
    more = [(_plain(place), code, _plain(message)) for place, code, message in more]
    wrong += [one for one in more if one[0] not in {place for place, _, _ in filled.unset}]
    for word in own["vars"] if isinstance(own.get("vars"), dict) else ():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            wrong.append((f"vars.{word}", "BAD_NAME", f"{word!r} is not a variable's name: a-z, 0-9 and _; ${{UPPER}}"
                          " is the process environment"))  # fmt: skip
    if wrong or made is None:
        raise SpecError(Problem(shown, lines.get(yaml.nearest(place, lines), 1), code, masked(message, filled.secrets),
                                place) for place, code, message in wrong)  # fmt: skip
    return made


#: what people write, by kind, and where the connection without a name stands, whose name is ''
_WORDS = {"kafka": "kafka, and kafka.<name> of other clusters", "jdbc": "jdbc.<name>"}
_PLAIN = "connections.kafka"


def _named(connections: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Those whose keys are ``<kind>.<name>`` by name under one key, where they have the same path; and keys that are
    not, with their kinds."""
    made: dict[str, Any] = {}
    wrong = {}
    for key, value in connections.items():
        kind = key.partition(".")[0]
        match = re.fullmatch(NAMED[kind], key) if kind in NAMED else None
        if match is not None:
            made.setdefault(kind, {})[match[1]] = value
        elif key == "kafka":
            made.setdefault(key, {}).update({} if value is None else {"": value})
        elif kind in NAMED:
            wrong[key] = kind
        else:
            made[key] = value
    return made, wrong


def _plain(text: str) -> str:
    """A place, or what names one, as the file has it: the connection without a name has no point behind it."""
    return re.sub(rf"{re.escape(_PLAIN)}\.(?=\.|\s|$)", _PLAIN, text)


class _Filled:
    """Puts environment variables in place of their names. ``unset``: place, code and message of those not there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.unset: list[tuple[str, str, str]] = []
        self.secrets: set[str] = set()

    def value(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {k: self.value(v, f"{place}.{k}" if place else str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v, f"{place}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        text = _VARIABLE.sub(lambda match: self._named(match, place), value)
        whole = _VARIABLE.fullmatch(value)
        return FromText(text) if whole is not None and whole[1] else text

    def _named(self, match: re.Match[str], place: str) -> str:
        name, default = match[1], match[3]
        if name is None:
            return "${"
        if name not in self._variables and match[2] is None:
            self.unset.append((place, "UNSET_VARIABLE", f"there is no environment variable {name}; give it a value or"
                               f" write ${{{name}:-default}}"))  # fmt: skip
        found = self._variables.get(name, default or "")
        if found and SECRET.search(name):
            self.secrets.add(found)
        return found
