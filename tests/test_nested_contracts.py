"""Contracts of objects, arrays, maps and any values, made at random: Spark SQL and jsonschema give the same verdict."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pyspark.sql import SparkSession

from lakehouse_engine.contract import Contract
from lakehouse_engine.contract.file import build
from lakehouse_engine.spec import yaml
from tests.test_parse import twice, verdicts

EXAMPLES = int(os.environ.get("LAKEHOUSE_EXAMPLES", "2"))
#: contracts that one query judges, and payloads of each
TOGETHER, PAYLOADS = 3, 350
NAMES = ("id", "sku", "Qty", "at", "tags", "x1")
CASES = Path(__file__).parent / "cases"
Schema = dict[str, Any]


@st.composite
def scalars(draw: st.DrawFn) -> Schema:
    kind = draw(st.sampled_from(["string", "date-time", "date", "integer", "number", "boolean"]))
    if kind in ("date-time", "date"):
        return {"type": "string", "format": kind}
    rules: Schema = {"type": kind}
    if kind == "string":
        rules |= draw(st.sampled_from([{}, {}, {"minLength": 1, "maxLength": 4}, {"pattern": "^[a-z]+$"},
                                       {"enum": ["a", "5", "true"]}, {"enum": ["a", "b"]}]))  # fmt: skip
    if kind in ("integer", "number"):
        rules |= draw(st.sampled_from([{}, {}, {"minimum": 1}, {"exclusiveMaximum": 6}, {"enum": [1, 5]}]))
    return rules


@st.composite
def values(draw: st.DrawFn, depth: int) -> Schema:
    kind = draw(st.sampled_from(["scalar"] * 3 + ["array", "object", "map", "any"] * bool(depth)))
    if kind == "scalar":
        rules = draw(scalars())
    elif kind == "array":
        rules = {"type": "array", "items": draw(values(depth - 1)),
                 **draw(st.sampled_from([{}, {}, {"minItems": 1}, {"maxItems": 2}]))}  # fmt: skip
        if draw(st.booleans()) and not _holds_any(rules["items"]):
            rules["uniqueItems"] = True
    elif kind == "map":
        rules = {"type": "object", "additionalProperties": draw(values(depth - 1))}
    elif kind == "object":
        rules = draw(objects(depth - 1))
    else:
        return {}
    if draw(st.integers(0, 4)):
        return rules
    listed = {"enum": [*rules["enum"], None]} if "enum" in rules and draw(st.booleans()) else {}
    return {**rules, **listed, "type": [rules["type"], "null"]}


@st.composite
def objects(draw: st.DrawFn, depth: int) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return {"type": "object", "properties": {name: draw(values(depth)) for name in names},
            "required": [name for name in names if draw(st.booleans())],
            **draw(st.sampled_from([{}, {}, {"additionalProperties": False}]))}  # fmt: skip


@st.composite
def contracts(draw: st.DrawFn) -> Schema:
    return {**draw(objects(3)), **draw(st.sampled_from([{}, {"additionalProperties": False},
                                                        {"additionalProperties": True}]))}  # fmt: skip


def _holds_any(rules: Schema) -> bool:
    inner = [*rules.get("properties", {}).values(), *([rules["items"]] if "items" in rules else [])]
    is_map = "properties" not in rules and "additionalProperties" in rules
    return rules == {} or is_map or any(map(_holds_any, inner))


SCALARS: list[Any] = ["a", "b", "5", "1.5", "true", "null", "{}", "[1]", "", "abcde", "\0", "é", "\ud800", "\\u0000",
                      "2026-01-01", "2026-02-30", "2026-01-01T00:00:00Z", 5, 1, 0, 7, -1, 1.0, 1.5, 1e300, 2**63,
                      2**63 - 1, 10**30, 2**53 + 1, True, False, None]  # fmt: skip
OTHER: list[Any] = [*SCALARS, [], {}, [None], {"a": None}, ["a"], {"a": 1}, [[1]], [{}], {"id": {"id": [1]}}]


def a_value(rules: Schema, dice: random.Random) -> Any:
    """One that keeps the schema, or nearly."""
    if dice.random() < 0.02:
        return dice.choice(OTHER)
    kind = rules.get("type", "any")
    if isinstance(kind, list):
        if dice.random() < 0.2:
            return None
        kind = kind[0]
    if kind == "any":
        return dice.choice(OTHER)
    if "enum" in rules or "const" in rules:
        return dice.choice(rules.get("enum") or [rules["const"]])
    if kind == "object" and "properties" in rules:
        required = rules.get("required", [])
        made = {name: a_value(inner, dice) for name, inner in rules["properties"].items()
                if dice.random() < (0.99 if name in required else 0.7)}  # fmt: skip
        return {**made, **({"more": dice.choice(OTHER)} if dice.random() < 0.08 else {})}
    if kind == "object":
        return {dice.choice(["k", "é", "a.b", "", "K"]): a_value(rules["additionalProperties"], dice)
                for _ in range(dice.randrange(3))}  # fmt: skip
    if kind == "array":
        return [a_value(rules["items"], dice) for _ in range(dice.choice([0, 1, 1, 2, 3]))]
    form = rules.get("format", kind)
    return dice.choice({
        "string": ["a", "b", "abc", "5", "true", "a\\b", "é"], "date": ["2026-01-01", "2024-02-29"],
        "date-time": ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+02:00"], "integer": [1, 2, 5],
        "number": [1, 2.5, 5, 5.0, 1e2], "boolean": [True, False]}[form])  # fmt: skip


def written(value: Any, dice: random.Random) -> str:
    """As JSON; now and then a key stands twice."""
    if isinstance(value, list):
        return f"[{','.join(written(one, dice) for one in value)}]"
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=dice.random() < 0.5 or "\ud800" in str(value))
    pairs = [f"{json.dumps(name)}: {written(one, dice)}" for name, one in value.items()]
    if pairs and dice.random() < 0.03:
        name = dice.choice(list(value))
        pairs.insert(dice.randrange(len(pairs) + 1), f"{json.dumps(name)}: {written(dice.choice(OTHER), dice)}")
    return "{" + ", ".join(pairs) + "}"


def payloads(schema: Schema, dice: random.Random) -> list[bytes | None]:
    found: list[bytes | None] = []
    for _ in range(PAYLOADS):
        text = written(a_value({"type": "object", **schema}, dice), dice)
        if dice.random() < 0.03:
            at = dice.randrange(len(text))
            text = text[:at] + dice.choice(["", "x", '"', "{", "]", ","]) + text[at + 1 :]
        found.append(text.encode("utf-8", "surrogatepass"))
    return found


def top(reasons: list[str]) -> set[str]:
    """The columns that reasons are of."""
    return {reason.split(":")[0].split(".")[0].split("[")[0].split("{")[0] for reason in reasons}


@settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(schemas=st.lists(contracts(), min_size=TOGETHER, max_size=TOGETHER), seed=st.integers(0, 2**32))
def test_spark_and_jsonschema_agree_on_random_payloads_of_random_contracts(
    spark: SparkSession, schemas: list[Schema], seed: int
) -> None:
    dice = random.Random(seed)
    made: list[tuple[Contract, list[bytes | None]]] = [
        (build(f"c{number}", "c.yaml", schema, {}), payloads(schema, dice)) for number, schema in enumerate(schemas)
    ]
    for schema, (contract, values), found in zip(schemas, made, verdicts(spark, made), strict=True):
        plain = Draft202012Validator(schema)
        differ = []
        for value, (good, reasons) in zip(values, found, strict=True):
            judged = contract.judge(value)
            same = top(judged) == top(reasons) or twice(value)
            stricter = not good or plain.is_valid(json.loads(value or b"null"))
            if good != (not judged) or not same or not stricter:
                differ.append((value, judged, good, reasons))
        assert differ == [], f"{json.dumps(schema)} {differ[:3]}"


BASKET = build("basket", "basket.yaml", yaml.read(CASES / "contracts" / "basket.yaml", "basket.yaml").value, {})
EVENT = {"id": "a", "at": "2026-01-01T00:00:00Z", "items": [{"sku": "A", "quantity": 1}], "context": {"k": [1]}}
#: JSON that some reader takes and another does not, or that somebody chokes on
HOSTILE = [
    "NaN", "-Infinity", "1e999", "-1e-999", "1" * 1000, "1" * 1001, "-" + "1" * 1000, "0." + "1" * 999,
    "0." + "1" * 1000, "0." + "1" * 1001, "1e" + "9" * 400, "1e400", "-0", "-0.0", "1.0", "01", "+1", ".5", "5.",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1234567890123456789012345678901234567890",
    "true", "TRUE", "null", "nil", "undefined", '""', '"\\u0000"', '"\\\\u0000"', '"\\\\\\u0000"', '"\\ud800"',
    '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\ud83d"', '"\ufeff"', '"\u2028"', '"\x7f"', '"\x01"', '"\\x41"',
    "'a'", '"a', 'a"', "{", "}", "[", "]", "[,]", "[1,]", '{"a":1,}', '{"a"}', '{a:1}', '{"a":1 "b":2}', "/* */ 1",
    "1 // x", '{"a":1,"a":"b"}', '{"a":{"b":1},"a":{"b":"x"}}', '{"":""}', '{"\\u0000":1}', '{"a.b":1,"$":2,"a b":3}',
    '[{"sku":"A","quantity":1,"quantity":"1"}]', '[{"sku":"A","quantity":1}, null]', '[[], {}, [{}]]', "\t1\n", "\x0b1",
    "\u00a01", '"' + "x" * 5000 + '"', "[" * 300 + "]" * 300, '{"k":' * 200 + "1" + "}" * 200,
]  # fmt: skip
LARGE = [
    "[" * 997 + "]" * 997, "[" * 998 + "]" * 998, "[" * 999 + "]" * 999, "[" * 5000 + "]" * 5000, "[" * 5000,
    '{"k":' * 998 + "1" + "}" * 998, '{"k":' * 999 + "1" + "}" * 999, '"' + "x" * 1_000_000 + '"',
    '"' + "\\u00e9" * 160_000 + '"', "[" + "1," * 300_000 + "1]", '{"' + "k" * 50_000 + '":1}',
    '{"' + "k" * 50_001 + '":1}', "[" + '{"sku":"A","quantity":1},' * 20_000 + '{"sku":"A","quantity":1}]',
    " " * 1_000_000 + "1", "\ud800" * 10,
]  # fmt: skip


def hostile() -> list[bytes | None]:
    """Ten thousand payloads: events in which a value is replaced by what no reader should trust, and broken bytes."""
    dice = random.Random(7)
    good = json.dumps(EVENT)
    places = [good.replace(json.dumps(value), "@", 1) for value in ("a", EVENT["at"], "A", 1, [1], EVENT["context"])]
    places += [good[:-1] + tail for tail in (', "more": @}', ', "tags": @}', ', "labels": @}', ', "tags": [@]}',
                                             ', "labels": {"k": @}}', ', "id": @}', "}@")]  # fmt: skip
    places += ["@" + good, "@", '{"id": @, ' + good[1:], '{"items": @, ' + good[1:]]
    found: list[bytes | None] = [None, b"", b"\xef\xbb\xbf" + good.encode(), good.encode("utf-16"), b"\0{}", b"{}\0"]
    found += [place.replace("@", value).encode("utf-8", "surrogatepass") for place in places for value in HOSTILE]
    found += [places[n].replace("@", value).encode("utf-8", "surrogatepass") for n in (5, 6, 12) for value in LARGE]
    bad = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80", b"\0"]
    while len(found) < 10_000:
        if dice.random() < 0.4:  # a text, or a value of any kind, of odd characters
            odd = "".join(dice.choices("a5-.eE{}[]:,\"\\\0\t\n/é\u2028\ufeff\U0001f600 ", k=dice.randrange(1, 6)))
            event = {**EVENT, dice.choice(["id", "context", "more", "tags"]): dice.choice([odd, [odd], {odd: odd}])}
            found.append(json.dumps(event, ensure_ascii=dice.random() < 0.5).encode())
            continue
        raw = bytearray(dice.choice([good, json.dumps(EVENT, ensure_ascii=False, separators=(",", ":"))]).encode())
        for _ in range(dice.choice([1, 1, 2, 3])):
            at = dice.randrange(len(raw))
            action = dice.random()
            if action < 0.4:
                raw[at:at] = dice.choice([*bad, dice.choice(HOSTILE).encode("utf-8", "surrogatepass")])
            elif action < 0.7:
                raw[at] = dice.randrange(256)
            else:
                del raw[at : at + dice.randrange(1, 4)]
        found.append(bytes(raw))
    return found


def test_ten_thousand_hostile_payloads_have_the_same_verdict(spark: SparkSession) -> None:
    values = hostile()
    ((*found,),) = verdicts(spark, [(BASKET, values)])
    judged = [BASKET.judge(value) for value in values]
    differ = [((value or b"")[:150], why, told) for value, why, told in zip(values, judged, found, strict=True)
              if told[0] == bool(why)]  # fmt: skip
    assert differ == []
    assert len(values) == 10_000
    assert 500 < sum(good for good, _ in found) < 5_000
