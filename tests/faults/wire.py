"""A proxy before PostgreSQL that stops where a test wants it to: before a statement, after a COPY, after a COMMIT whose
answer is not passed on. Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class WireHold:
    """``act``: before (a statement), copied (before what follows a COPY), answered (a statement that was done, and
    whose answer is on its way). ``within``: only where the transaction had such a statement before."""

    act: str
    pattern: str
    within: str = ""
    _reached: threading.Event = field(default_factory=threading.Event)
    _go: threading.Event = field(default_factory=threading.Event)
    how: str = "on"

    def reached(self) -> bool:
        return self._reached.is_set()

    def let_go(self) -> None:
        self._go.set()

    def cut(self) -> None:
        """The connection breaks here."""
        self.how = "cut"
        self._go.set()

    def full(self) -> None:
        """The server answers that its disk is full."""
        self.how = "full"
        self._go.set()

    def wait(self) -> str:
        self._reached.set()
        self._go.wait()
        return self.how


class Wire:
    """``dsn``: of the database, by way of the proxy."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.dsn = dsn.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
        self._holds: list[WireHold] = []
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, act: str, pattern: str, within: str = "") -> WireHold:
        made = WireHold(act, pattern, within)
        self._holds.append(made)
        return made

    def taken(self, act: str, text: str, before: str) -> WireHold | None:
        for one in self._holds:
            if one.act == act and re.search(one.pattern, text, re.IGNORECASE) and re.search(one.within, before):
                self._holds.remove(one)
                return one
        return None

    def forget(self) -> None:
        """What was not reached is not waited for any more."""
        self._holds.clear()

    def close(self) -> None:
        self._listener.close()
        for one in list(self._open):
            _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # it is being started
                client.close()
                continue
            self._open |= {client, server}
            _Connection(self, client, server)


class _Connection:
    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self._wire, self._client, self._server = wire, client, server
        self._since_begin, self._copied = "", False
        self._swallow: WireHold | None = None
        for side in (self._asked, self._answered):
            threading.Thread(target=self._run, args=(side,), daemon=True).start()

    def _run(self, side: object) -> None:
        try:
            side()  # type: ignore[operator]
        except OSError:
            pass
        finally:
            _shut(self._client)
            _shut(self._server)

    def _asked(self) -> None:
        while True:  # SSL is asked for first, and refused
            body = _exactly(self._client, struct.unpack("!I", _exactly(self._client, 4))[0] - 4)
            self._server.sendall(struct.pack("!I", len(body) + 4) + body)
            if struct.unpack("!I", body[:4])[0] >> 16 == 3:
                break
        while True:
            kind, body = _message(self._client)
            if kind == b"Q":
                text = body[:-1].decode(errors="replace")
                answer = self._statement(text)
                if answer is not None:
                    self._client.sendall(answer)
                    continue
            elif kind == b"c":
                self._copied = True
            self._server.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def _statement(self, text: str) -> bytes | None:
        """What the client is told instead of the server's own answer."""
        if re.match(r"\s*begin", text, re.IGNORECASE):
            self._since_begin = ""
        held = self._wire.taken("before", text, self._since_begin)
        if held is None and self._copied:
            held = self._wire.taken("copied", text, self._since_begin)
        self._copied = False
        self._since_begin += f"{text[:2000]}\n"
        if held is None:
            self._swallow = self._wire.taken("answered", text, self._since_begin)
            return None
        how = held.wait()
        if how == "cut":
            raise OSError("cut")
        if how == "full":
            fields = b"SERROR\0VERROR\0C53100\0Mcould not extend file: No space left on device\0\0"
            return b"E" + struct.pack("!I", len(fields) + 4) + fields + b"Z" + struct.pack("!I", 5) + b"E"
        return None

    def _answered(self) -> None:
        while True:
            data = self._server.recv(65536)
            if not data:
                return
            if self._swallow is not None:
                held, self._swallow = self._swallow, None
                if held.wait() != "on":
                    return
            self._client.sendall(data)


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(source, 5)
    return head[:1], _exactly(source, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        data = source.recv(size - len(found))
        if not data:
            raise OSError("closed")
        found += data
    return bytes(found)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
