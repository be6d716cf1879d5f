"""The contract's two readers agree: Spark SQL (transforms/parse.py) and jsonschema (Contract.judge)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from lakehouse_engine import rows, sql
from lakehouse_engine.contract import Contract, Field
from lakehouse_engine.rows import Rows
from lakehouse_engine.transforms import Parse

ALL = Contract(
    name="all",
    file="all.yaml",
    fields=(
        Field(name="id", kind="string", required=True, min_length=1, max_length=8),
        Field(name="n", kind="integer", required=True, minimum=1, exclusive_maximum=1000),
        Field(name="at", kind="timestamp", required=True),
        Field(name="day", kind="date", required=False),
        Field(name="x", kind="number", required=False, nullable=True, minimum=-5),
        Field(name="flag", kind="boolean", required=False),
        Field(name="kind", kind="string", required=True, enum=("a", "b", "5")),
        Field(name="code", kind="string", required=False, pattern="^[A-Z]{2}[0-9]+$"),
        Field(name="note", kind="string", required=True, nullable=True),
    ),
)
CLOSED = ALL.model_copy(update={"name": "closed", "closed": True})
GOOD = {"id": "é1", "n": 5, "at": "2026-02-28T23:59:59.123456789+02:00", "day": "2024-02-29", "x": 1.5, "flag": True,
        "kind": "a", "code": "AB12", "note": None}  # fmt: skip

_VALUES = [
    None, "", "x", "5", "1.5", "true", "null", "{}", "[1]", 5, 0, 1, 999, 1000, -1, 1.0, 1.5, -6, 1e2, 1e308, True,
    False, [], ["a"], {}, {"a": 1}, "2026-01-01", "2026-02-30", "2026-01-01T00:00:00Z", "2026-01-01T24:00:00Z",
    "2026-01-01T23:59:60Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+18:00",
    "2026-01-01T00:00:00+18:01", "2026-01-01T00:00:00-05:75", "2026-01-01T00:00:00.1234567890Z", "1899-12-31T00:00:00Z",
    "2200-12-31T23:59:59Z", "2201-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "2026-01-01t00:00:00z",
    "2026-01-01T00:00:00Z\n", "AB1", "ab1", "a\u0000b", "\U0001f600", "toolongforit", "12345678", 2**63, 2**63 - 1,
    -(2**70),
]  # fmt: skip
_RAW = [
    b"", b" ", b"null", b"5", b'"s"', b"[]", b"{}", b"[{}]", b"not json", b"\xff\xfe", b"{", b"}", b"\xef\xbb\xbf{}",
    b'{"id":NaN}', b"{'id':'a'}", b'{"id":"a","id":"b"}', b'{"id":"\\ud800"}', b"{} {}", b'{},{"v":1}',
]  # fmt: skip


def payloads() -> list[bytes | None]:
    """Good events with one or two fields changed, removed or added, and bytes broken in many ways."""
    random_ = random.Random(7)
    good = json.dumps(GOOD)
    found: list[bytes | None] = [None, *_RAW, good.encode(), json.dumps(GOOD, ensure_ascii=False).encode()]
    for name in GOOD:
        found += [json.dumps({**GOOD, name: value}).encode() for value in _VALUES]
        found.append(json.dumps({key: value for key, value in GOOD.items() if key != name}).encode())
    found += [json.dumps({**GOOD, "extra": value}).encode() for value in (1, None, {"a": [1]}, "a\u0000b")]
    texts = ("1e999", "-1e999", '["\u2028"]', '{"a": "\u2029"}', '"\u2028[]"', '"\\"Infinity\\""')
    found += [json.dumps({**GOOD, "note": "@"}).replace('"@"', text).encode() for text in texts]
    numbers = ("NaN", "05", "5.0", "5e0", "Infinity", "0x5", "-0", "+5")
    found += [good.replace("5", text, 1).encode() for text in numbers]
    escapes = ("\\ud800", "\\udc00x", "\\ud83d\\ude00", "\\\\ud800")
    found += [good.replace("\\u00e91", text).encode() for text in escapes]
    found += [(good + tail).encode() for tail in (" ", "\n", "}", ",", " x", "{}", '"', "//")]
    found += [(head + good).encode() for head in (" ", "\n", "x", "[", "\ufeff")]
    for name in GOOD:  # a key twice
        found += [(json.dumps({name: value})[:-1] + ", " + good[1:]).encode() for value in _VALUES]
        found += [(good[:-1] + ", " + json.dumps({name: value})[1:]).encode() for value in _VALUES]
    for _ in range(400):  # one byte dropped, doubled or replaced
        at = random_.randrange(len(good))
        piece = random_.choice(["", good[at] * 2, random_.choice('{}[]",:0\\ \u00e9tfn')])
        found.append((good[:at] + piece + good[at + 1 :]).encode())
    return found


def twice(payload: bytes | None) -> bool:
    """Whether a key stands twice in the record."""
    found = []
    try:
        json.loads(payload or b"", object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    except ValueError:
        return False
    return any(found)


def verdicts(
    spark: SparkSession, judged: Sequence[tuple[Contract, Sequence[bytes | None]]]
) -> list[list[tuple[bool, list[str]]]]:
    """Of each contract's payloads whether the engine takes it, and why not; all in one job."""
    asked = []
    for number, (contract, values) in enumerate(judged):
        parsed = Parse(contract="all").row(Rows.identity({"_value": "binary"}), "parse", contract)
        _, reasons = rows.first_reasons(parsed.verdicts)
        frame = spark.createDataFrame([(i, v) for i, v in enumerate(values)], "i int, _value binary")
        frame.createOrReplaceTempView(f"payloads{number}")
        inner = rows.layered(f"payloads{number}", parsed.layers)
        stored = rows.struct(parsed.stored)  # what cannot be made of a payload must not stop a job
        asked.append(f"select {number} as c, i, {rows.outcome(parsed.verdicts)} = 'counted' as good, {reasons} as"
                     f" reasons, hash(to_json({stored})) as h from ({inner})")  # fmt: skip
    found: list[dict[int, tuple[bool, list[str]]]] = [{} for _ in judged]
    for row in spark.sql(" union all ".join(asked)).collect():
        found[row["c"]][row["i"]] = (row["good"], sorted(row["reasons"] or []))
    return [[told[i] for i in range(len(values))] for told, (_, values) in zip(found, judged, strict=True)]


@pytest.mark.parametrize("contract", [ALL, CLOSED], ids=["open", "closed"])
def test_spark_and_jsonschema_give_the_same_verdict_and_reasons_payload_by_payload(
    spark: SparkSession, contract: Contract
) -> None:
    values = payloads()
    ((*found,),) = verdicts(spark, [(contract, values)])
    differ = []
    accepted = 0
    for value, (good, reasons_) in zip(values, found, strict=True):
        judged = contract.judge(value)
        accepted += not judged
        # of two values under one key the readers may name different reasons; the verdict is the same
        if (good, [] if twice(value) else reasons_) != (not judged, [] if twice(value) else sorted(judged)):
            differ.append((value, judged, good, reasons_))
    assert differ == []
    assert accepted > 20, "the table must hold good payloads too"


def test_a_parsed_event_has_the_contracts_values(spark: SparkSession) -> None:
    parsed = Parse(contract="all").row(Rows.identity({"_value": "binary"}), "parse", ALL)
    frame = spark.createDataFrame([(bytearray(json.dumps(GOOD).encode()),)], "_value binary")
    frame.createOrReplaceTempView("one")
    inner = rows.layered("one", parsed.layers)
    chosen = ", ".join(f"{text} as {sql.name(name)}" for name, text in parsed.stored.items())
    result = spark.sql(f"select {chosen} from ({inner})")
    assert dict(result.dtypes) == {**ALL.columns}
    row = result.withColumn("at", result["at"].cast("string")).withColumn("day", result["day"].cast("string"))
    assert row.collect()[0].asDict() == {
        "id": "é1", "n": 5, "at": "2026-02-28 21:59:59.123456", "day": "2024-02-29", "x": 1.5, "flag": True,
        "kind": "a", "code": "AB12", "note": None}  # fmt: skip


def test_the_reference_contract_is_plain_json_schema() -> None:
    from jsonschema import Draft202012Validator

    from lakehouse_engine.spec import yaml

    file = Path(__file__).parent.parent / "pipelines" / "contracts" / "user_event.yaml"
    schema = yaml.read(file, str(file)).value
    Draft202012Validator.check_schema(schema)
    event = {"event_id": "a", "user_id": 1, "event_type": "click", "page": "/", "timestamp": "2026-01-01T00:00:00Z",
             "source": "web"}  # fmt: skip
    assert list(Draft202012Validator(schema).iter_errors(event)) == []
    assert list(Draft202012Validator(schema).iter_errors({**event, "user_id": "1"})) != []
