"""The web application: pages, and the read-only API under them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lakehouse_engine import states
from lakehouse_engine.dashboard import answers, boards, detail, tables
from lakehouse_engine.dashboard.access import Access, problem
from lakehouse_engine.dashboard.project import Project
from lakehouse_engine.dashboard.tables import NotFound
from lakehouse_engine.errors import LakehouseError, UsageError
from lakehouse_engine.graph import graph

STATIC = Path(__file__).parent / "static"
_PAGES = ("/", "/pipelines", "/pipelines/{name}", "/graph", "/tables", "/tables/{name}", "/reference")
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": answers.Problem, "description": "What was asked is wrong."},
    404: {"model": answers.Problem, "description": "There is no such thing."},
    503: {"model": answers.Problem, "description": "PostgreSQL does not answer, or not in time."},
}
_FILTERS = {
    "name": "filters", "in": "query", "style": "form", "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "example": {"event_type": "click", "window_start.gte": "2026-01-01T00:00:00Z"},
    "description": "`COLUMN=VALUE` or `COLUMN.OPERATOR=VALUE`; operators eq, ne, gt, gte, lt, lte, in (a,b), null"
    " (true or false). `order=-window_start,event_type`, `columns=a,b`, `limit` (to 1000), `offset`.",
}  # fmt: skip
Shown = Annotated[str | None, Query(alias="range", description="Up to now: 5m, 1h, 7d.", examples=["1h"])]
From = Annotated[str | None, Query(alias="from", description="ISO time, with `to`, instead of `range`.")]
To = Annotated[str | None, Query(alias="to")]
_log = logging.getLogger(__name__)


def create_app(project: Project, token: str | None = None) -> ASGIApp:
    """The whole application. ``token`` None: for loopback."""
    api = FastAPI(title="Lakehouse", version="1", docs_url=None, redoc_url=None,
                  description="Read-only. Tables of realtime and gold, pipelines, dashboards.")  # fmt: skip
    _errors(api)
    _pages(api)
    _tables(api, project)
    _pipelines(api, project)
    _boards(api, project)
    _operations(api, project)
    api.add_middleware(GZipMiddleware, minimum_size=2000)
    return Access(api, token, (STATIC / "login.html").read_text(encoding="utf-8"))


def _errors(api: FastAPI) -> None:
    @api.exception_handler(LakehouseError)
    def ours(_: Request, error: LakehouseError) -> Response:
        status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, UsageError) else 503
        return problem(status, error.code, error.message, error.where)

    @api.exception_handler(RequestValidationError)
    def wrong(_: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return problem(400, "BAD_REQUEST", told)

    @api.exception_handler(HTTPException)
    def other(_: Request, error: HTTPException) -> Response:
        code = {404: "NOT_FOUND", 405: "READ_ONLY"}.get(error.status_code, "HTTP_ERROR")
        return problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))

    @api.exception_handler(Exception)
    def unknown(_: Request, error: Exception) -> Response:
        _log.exception("a request failed", exc_info=error)
        return problem(500, "INTERNAL", "a fault of the dashboard itself; its terminal says more")


def _pages(api: FastAPI) -> None:
    api.mount("/static", StaticFiles(directory=STATIC))

    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    for path in _PAGES:
        api.add_api_route(path, page, include_in_schema=False)


def _tables(api: FastAPI, project: Project) -> None:
    @api.get("/api/tables", response_model=answers.Tables, responses=_ERRORS, tags=["tables"])
    def list_tables() -> Any:
        """The tables of `realtime` and `gold`."""
        return {"tables": project.shared.get("tables", lambda: tables.listed(project.database))}

    @api.get("/api/tables/{table}", response_model=answers.Page, responses=_ERRORS, tags=["tables"],
             openapi_extra={"parameters": [_FILTERS]})  # fmt: skip
    def read_table(table: str, request: Request) -> Any:
        """Rows of one table, `schema.table`, filtered, ordered, a page at a time."""
        asked = request.query_params.multi_items()
        return project.shared.get(("rows", table, tuple(asked)),
                                  lambda: tables.rows(project.database, table, asked, request.url.path))  # fmt: skip


def _pipelines(api: FastAPI, project: Project) -> None:
    @api.get("/api/pipelines", response_model=answers.Pipelines, responses=_ERRORS, tags=["pipelines"])
    def list_pipelines() -> Any:
        """How every pipeline stands."""
        return {"pipelines": _states(project), "problems": list(project.problems)}

    @api.get("/api/pipelines/{name}", response_model=answers.Detail, responses=_ERRORS, tags=["pipelines"])
    def read_pipeline(name: str, shown: Shown = None, start: From = None, end: To = None) -> Any:
        """State, activity, newest batches or versions, errors, and samples of what was kept aside."""
        spec = next((s for s in project.specs if s.name == name), None)
        if spec is None:
            raise NotFound("UNKNOWN_PIPELINE", f"there is no pipeline {name!r}; GET /api/pipelines")
        over = boards.parse_range(shown, start, end)
        state = next(entry for entry in _states(project) if entry["name"] == name)
        return project.shared.get(("pipeline", name, shown, start, end), lambda: detail.detail(
            spec, state, over, project.database, project.storage))  # fmt: skip

    @api.get("/api/graph", response_model=answers.Graph, tags=["pipelines"])
    def read_graph() -> Any:
        """Topics, tables, copies and panels, and what flows between them."""
        return graph(project.specs)


def _states(project: Project) -> list[dict[str, Any]]:
    specs = project.specs
    return project.shared.get(("states", id(specs)), lambda: states.states(specs, project.database, project.storage))


def _boards(api: FastAPI, project: Project) -> None:
    def board(uid: str) -> boards.Board:
        found = project.boards.get(uid)
        if found is None:
            raise NotFound("UNKNOWN_DASHBOARD", f"there is no dashboard {uid!r}; GET /api/dashboards")
        return found

    def data(of: boards.Board, number: int, shown: str | None, start: str | None, end: str | None) -> Any:
        if number not in of.panels:
            raise NotFound("UNKNOWN_PANEL", f"{of.uid} has no panel {number}")
        over = boards.parse_range(shown, start, end)
        key = ("panel", id(of), number, shown, start, end)
        return project.shared.get(key, lambda: boards.answer(of, number, over, project.database))

    @api.get("/api/dashboards", response_model=answers.Boards, tags=["dashboards"])
    def list_dashboards() -> Any:
        return {"dashboards": [{"uid": b.uid, "title": b.content["title"], "panels": len(b.panels)}
                               for b in project.boards.values()]}  # fmt: skip

    @api.get("/api/dashboards/{uid}", responses=_ERRORS, tags=["dashboards"])
    def read_dashboard(uid: str) -> dict[str, Any]:
        """Grafana's JSON of the dashboard, without its queries."""
        return board(uid).shown()

    @api.get("/api/dashboards/{uid}/panels", response_model=answers.PanelsData, responses=_ERRORS, tags=["dashboards"])
    def read_panels(uid: str, ids: Annotated[str | None, Query(description="1,2; all without it.")] = None,
                    shown: Shown = None, start: From = None, end: To = None) -> Any:  # fmt: skip
        """What several panels show at one time."""
        of = board(uid)
        words = list(map(str, of.panels)) if ids is None else [word for word in ids.split(",") if word]
        if not all(word.isascii() and word.isdigit() and len(word) < 7 for word in words):
            raise UsageError("BAD_REQUEST", f"ids are numbers with commas between them, and not {ids!r}")
        return JSONResponse({"panels": [data(of, int(word), shown, start, end) for word in dict.fromkeys(words)]})

    @api.get("/api/dashboards/{uid}/panels/{number}", response_model=answers.PanelData, responses=_ERRORS,
             tags=["dashboards"])  # fmt: skip
    def read_panel(uid: str, number: int, shown: Shown = None, start: From = None, end: To = None) -> Any:
        """What one panel shows."""
        return JSONResponse(data(board(uid), number, shown, start, end))


def _operations(api: FastAPI, project: Project) -> None:
    @api.get("/healthz", response_model=answers.Health, responses={503: {"model": answers.Health}}, tags=["operations"])
    def healthz(request: Request) -> Any:
        """Whether every stream makes progress: 503 where one has failed, is stale or never committed."""
        try:
            found = states.health(_states(project))
        except LakehouseError as error:
            found = {"status": "failing", "error": {"code": error.code, "message": error.message}}
        status = 200 if found["status"] == "ok" else 503
        known = request.scope.get("lakehouse.known", True)
        return JSONResponse(found if known else {"status": found["status"]}, status)

    @api.get("/metrics", response_class=Response, responses=_ERRORS, tags=["operations"])
    def metrics() -> Response:
        """What the ledger holds, in Prometheus' text format."""
        return _metrics(project)


def _metrics(project: Project) -> Response:
    from prometheus_client import CONTENT_TYPE_LATEST

    from lakehouse_engine import metrics

    text = project.shared.get("metrics", lambda: metrics.exposition(project.dsn()))
    return Response(text, media_type=CONTENT_TYPE_LATEST)
