"""What the API answers, as OpenAPI tells it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Failure(_Answer):
    code: str = Field(description="Stable; the message may change.")
    message: str
    where: str | None = None


class Problem(_Answer):
    error: Failure


class Column(_Answer):
    name: str
    type: str = Field(description="PostgreSQL's type.")


class TableEntry(_Answer):
    name: str = Field(examples=["realtime.events_per_minute"])
    kind: Literal["table", "late", "quarantine", "state"]
    rows: int | None = Field(description="PostgreSQL's estimate; null where it has none yet.")
    bytes: int = Field(description="With indexes.")
    columns: list[Column]


class Tables(_Answer):
    tables: list[TableEntry]


class Page(_Answer):
    table: str
    columns: list[Column]
    rows: list[list[Any]] = Field(description="Times in UTC as ISO 8601; numeric as text; bytea as text or \\x hex.")
    limit: int
    offset: int
    next: str | None = Field(description="The address of the next page.")


class Pipeline(_Answer):
    name: str
    kind: Literal["stream", "job"]
    state: Literal["failed", "stale", "overdue", "never", "running", "ok"]
    last_commit: str | None
    age_seconds: float | None
    lag_seconds: float | None = Field(description="Since the newest event of the slowest partition that is not idle.")
    watermark: str | None
    behind: int | None = Field(description="Records of the topic that were not read yet at the last commit.")
    rows_per_second: float | None = Field(description="Records read, over the last minute.")


class Pipelines(_Answer):
    pipelines: list[Pipeline]
    problems: list[str] = Field(description="The validator's lines, while a file is wrong.")


class Series(_Answer):
    name: str
    values: list[float | int | None]


class Activity(_Answer):
    time: list[float] = Field(description="Seconds since 1970.")
    series: list[Series]


class Detail(Pipeline):
    activity: Activity | None
    totals: dict[str, int] | None
    batches: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    errors: list[dict[str, Any]] | None = Field(description="null where runs are not kept.")
    late: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]


class Node(_Answer):
    id: str
    kind: Literal["topic", "files", "delta", "postgres", "console", "panel"]
    title: str
    pipeline: str | None
    rank: int


class Graph(_Answer):
    nodes: list[Node]
    edges: list[dict[str, str]]


class BoardEntry(_Answer):
    uid: str
    title: str
    panels: int


class Boards(_Answer):
    dashboards: list[BoardEntry]


class PanelData(_Answer):
    """``time`` and ``series`` of a time series, ``columns`` and ``rows`` of any other panel."""

    id: int
    state: Literal["ok", "empty", "missing", "error"]
    message: str | None = None
    step: int = Field(description="Seconds.")


class PanelsData(_Answer):
    panels: list[PanelData]


class Health(_Answer):
    status: Literal["ok", "failing"]
