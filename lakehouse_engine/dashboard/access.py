"""Who may ask: on loopback whoever names this machine as the host, elsewhere who has the token.

A page of somebody else's can send requests to 127.0.0.1 under a name of its own (DNS rebinding): on loopback the Host
header must say loopback. The token comes as a bearer header, or once in a form, and then as a cookie that holds a
value derived from it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lakehouse_engine.errors import UsageError

COOKIE = "lakehouse_dashboard"
_SHORTEST = 16
_OPEN = ("/login", "/static/", "/healthz")
_HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(file: Path, *, make: bool) -> str:
    """The token in a file. With ``make`` it is written if there is none, for its owner alone to read; another file may
    be readable to others, as secrets in a container are, but not writable.

    Raises ``UsageError`` TOKEN_FILE.
    """
    where = str(file)
    try:
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
                written.write(secrets.token_urlsafe(32) + "\n")
        open_to_others = file.stat().st_mode & (0o077 if make else 0o022)
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("TOKEN_FILE", f"cannot be used: {error}", where=where) from None
    if open_to_others:
        raise UsageError("TOKEN_FILE", "it is open to others; mend with: chmod 600", where=where)
    if len(token) < _SHORTEST:
        raise UsageError("TOKEN_FILE", f"a token has {_SHORTEST} characters or more", where=where)
    return token


def problem(status: int, code: str, message: str, where: str = "", headers: dict[str, str] | None = None) -> Response:
    """An error as the API gives it."""
    content = {"error": {"code": code, "message": message, **({"where": where} if where else {})}}
    return JSONResponse(content, status, headers)


class Access:
    """Middleware. Without ``token`` only requests to loopback are answered."""

    def __init__(self, app: ASGIApp, token: str | None, login_page: str) -> None:
        self._app, self._token, self._page = app, token, login_page
        self._session = self._derived(token) if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        request = Request(scope, receive)
        refused = await self._refused(request)
        await (refused or self._app)(scope, receive, guarded)

    async def _refused(self, request: Request) -> Response | None:
        if self._token is None:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if is_loopback(host):
                return None
            return problem(421, "WRONG_HOST", "this server answers on loopback alone; open it as http://127.0.0.1")
        path = request.url.path
        if path == "/login":
            return await self._login(request)
        request.scope["lakehouse.known"] = known = self.known(request.headers)
        if known or any(path == one or (one.endswith("/") and path.startswith(one)) for one in _OPEN):
            return None
        if "text/html" in request.headers.get("accept", "") and not path.startswith("/api/"):
            return RedirectResponse(f"/login?next={quote(path, safe='/')}", 303)
        return problem(401, "TOKEN_REQUIRED", "send the token: Authorization: Bearer TOKEN, or log in at /login",
                       headers={"www-authenticate": "Bearer"})  # fmt: skip

    def known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._same(given.strip(), self._token or ""):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and self._same(morsel.value, self._session)

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(self._page.replace("{error}", ""))
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > 4096:
                return problem(413, "TOO_LARGE", "a token is shorter")
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not self._same(given, self._token or ""):
            return HTMLResponse(self._page.replace("{error}", "That is not the token."), 401)
        to = request.query_params.get("next", "/")
        local = to.startswith("/") and not to.startswith(("//", "/\\"))
        response = RedirectResponse(to if local else "/", 303)
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/",
                            secure=request.url.scheme == "https")  # fmt: skip
        return response

    @staticmethod
    def _same(given: str, expected: str) -> bool:
        return hmac.compare_digest(given.encode(), expected.encode())

    @staticmethod
    def _derived(token: str) -> str:
        return hmac.new(token.encode(), b"lakehouse dashboard session", hashlib.sha256).hexdigest()
