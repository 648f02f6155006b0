"""A websocket server with a recognition session for each client; docs/server.md describes the messages.

The event loop exchanges messages with the clients, while a worker thread computes (:mod:`distill.serve.rounds`).

No audio is dropped: when a session holds a few seconds of audio, its socket is not read until some is computed, and TCP
slows the client down. Likewise, a session whose client does not read its results is not computed. Clients that cost
more than their share are cut off (:mod:`distill.serve.connections`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from aiohttp import WSCloseCode, WSMsgType, web

from distill.audio import SAMPLE_RATE
from distill.decode.settings import DecodeConf
from distill.decode.stream_results import RULES, SHERPA_RULES, EndpointRules
from distill.errors import UserError
from distill.serve.connections import BACKLOG, Connection, Connections, Limits
from distill.serve.log import log_to_stderr
from distill.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from distill.serve.models import open_model
from distill.serve.refusal import Refusal, one_line
from distill.serve.rounds import BYTES_PER_S, Rounds, Session

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "capture.js": "text/javascript",
    "resample.js": "text/javascript",
    "words.js": "text/javascript",
}
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
RULE_MS = (100, 600000)  # of each endpoint rule
WAITING_S = 5  # a session that holds more audio than this is not read until some is computed
BURST_S = 10  # this much audio may come at any speed
CLOSE_S = 2  # time for a client to answer that its connection is closed
TEXT_LENGTH = 4096  # characters of a message
MESSAGES_A_TURN = 50  # are taken from one session before others have their turn
READ_BUFFER = 1 << 14  # bytes of messages that wait to be taken
SWITCH_S = 0.0005  # for which one thread may keep the other waiting (Python's default: 0.005)

log = logging.getLogger(__name__)


class Server:
    """Serves one streaming student.

    Args:
        model: directory of the student's training, an export's, or a packed model.
        chunk_ms: chunk length for clients that do not choose one.
        rules: endpoint rules for clients that do not choose them.
        limits: see :class:`Limits`.
        origins: web pages besides the server's own that may connect, such as ``https://captions.example.org``.
        decoding: decoder and its settings; greedy by default.
        int8: of an export, take the model with int8 weights.
        threads: CPU threads of an export's model.

    Attributes:
        info: what a client may choose, and the limits, as in the message ``hello``.

    Raises:
        UserError: the model does not stream, or a default is out of range.
    """

    def __init__(
        self,
        model: Path,
        chunk_ms: int = 480,
        rules: EndpointRules = SHERPA_RULES,
        limits: Limits | None = None,
        origins: Sequence[str] = (),
        decoding: DecodeConf | None = None,
        int8: bool = False,
        threads: int = 1,
    ) -> None:
        self.limits = limits or Limits()
        self.origins = frozenset(origin.rstrip("/") for origin in origins)
        self._model = open_model(model, decoding or DecodeConf(), int8, threads)
        choices = self._model.choices(chunk_ms)
        for name, value in asdict(rules).items():
            if not _is_rule(value):
                raise UserError(f"{name}: {value} ms is not within {RULE_MS[0]} to {RULE_MS[1]}; none ends nothing")
        self.info: dict[str, Any] = {
            "model": model.resolve().name,
            "sample_rate": SAMPLE_RATE,
            "token_type": self._model.token_type,
            "chunk_ms": choices,
            "defaults": {"chunk_ms": chunk_ms, **asdict(rules)},
            "limits": asdict(self.limits),
        }
        self.metrics = Metrics()
        self.connections = Connections(self.limits, self.metrics)
        self.rounds = Rounds(self.metrics)
        self._sockets: set[web.WebSocketResponse] = set()
        self._page_files = {name: (PAGE / name).read_text(encoding="utf-8") for name in PAGE_FILES}

    def application(self) -> web.Application:
        """The page at /, the websocket at /stream, ``info`` at /info, and /metrics and /health for monitoring."""
        app = web.Application(middlewares=[self._check])
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/info", self._info)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/", self._page)
        app.router.add_get("/{name}", self._page)
        app.cleanup_ctx.append(self._run_rounds)
        app.on_shutdown.append(self._close_sockets)
        return app

    @web.middleware
    async def _check(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer one request of each connection, if no page of another site sent it."""
        try:
            self._check_origin(request)
            response = await handler(request)
        except web.HTTPException as error:
            error.force_close()
            raise
        response.force_close()
        return response

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in PAGE_FILES:
            raise web.HTTPNotFound(text="not found; the page is at /")
        return web.Response(text=self._page_files[name], content_type=PAGE_FILES[name], headers=PAGE_HEADERS)

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info, headers={"Cache-Control": "no-store"})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _health(self, request: web.Request) -> web.Response:
        status = {"status": "stuck" if self.rounds.stuck else "ok", "sessions": len(self._sockets)}
        return web.json_response(
            status, status=503 if self.rounds.stuck else 200, headers={"Cache-Control": "no-store"}
        )

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        # Uncompressed: a small compressed message may be a large one. Every message waits until there is room for it.
        socket = web.WebSocketResponse(
            timeout=CLOSE_S, compress=False, max_msg_size=self.limits.message_bytes + 1, writer_limit=0
        )
        await socket.prepare(request)
        connection = _connection_of(request)
        connection.begin_frames()
        try:
            self.connections.session_begins(connection)
            try:
                await self._run_session(socket, connection)
                await asyncio.wait_for(socket.close(), CLOSE_S)
            finally:
                self.connections.session_ends(connection)
        except* Refusal as group:
            refusal = group.exceptions[0]
            assert isinstance(refusal, Refusal)
            connection.refuse()
            self.metrics.cut_off.labels(refusal.code).inc()
            log.warning("session cut off", extra={"address": connection.address, "code": refusal.code})
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(_refuse(socket, refusal), CLOSE_S)
        except* (ConnectionError, TimeoutError):
            pass  # the client is gone, or does not read
        finally:
            connection.abort()  # unlike close, does not wait for a client that does not read
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """Refuse web pages of other sites, which a browser would let connect to a server on its own machine.

        A page from this server's address may connect if the address is a number or localhost. Anybody can make another
        name point to this machine, so such names must be in ``origins``. Programs other than browsers send no Origin
        with a websocket, and may use any name.

        Raises:
            HTTPForbidden: the request's Host or Origin is not allowed.
        """
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if origin in self.origins or (origin is None and request.path == "/stream"):
            return
        names = {_name_of(allowed) for allowed in self.origins}
        if (name := _name_of(f"//{host}")) not in names and not _is_ip_or_localhost(name):
            self.metrics.refused.labels("host").inc()
            problem = f"the server does not know the name {name or 'in Host'}"
            raise web.HTTPForbidden(text=one_line(f"{problem}; use its address, or start it with --origin URL"))
        if origin is not None and origin.partition("://")[2] != host:
            self.metrics.refused.labels("origin").inc()
            raise web.HTTPForbidden(
                text=one_line(f"pages of {origin} may not connect; start the server with --origin {origin}")
            )

    async def _run_session(self, socket: web.WebSocketResponse, connection: Connection) -> None:
        """Run a session, from ``hello`` to ``end``.

        Raises:
            Refusal, ConnectionError, TimeoutError, in a group: why it ended early.
        """
        self._sockets.add(socket)
        self.metrics.started.inc()
        began, session = time.monotonic(), None
        try:
            async with asyncio.TaskGroup() as tasks:  # if one of them fails, the others are cancelled
                watching = tasks.create_task(_wait_for(connection.cut_off))
                await self._send(socket, {"event": "hello", **self.info})
                session = await self._configure(socket)
                self.rounds.sessions[session] = None
                sending = tasks.create_task(self._send_messages(socket, session))
                await self._receive_audio(socket, session)
                await sending
                watching.cancel()
        finally:
            self._sockets.discard(socket)
            audio_s = 0.0
            if session is not None:
                self.rounds.sessions.pop(session, None)
                audio_s = session.received / BYTES_PER_S
            fields = {"address": connection.address, "seconds": round(time.monotonic() - began, 3), "audio_s": audio_s}
            log.info("session ended", extra=fields)

    async def _configure(self, socket: web.WebSocketResponse) -> Session:
        """Open the session that the client's first message describes."""
        message = await self._receive(socket, min(self.limits.idle_s, self.limits.request_s))
        if isinstance(message, bytes):
            raise Refusal("message", 'audio came first; the first message is {"event": "config"}')
        chosen = _parse(message, "config")
        if "endpoint_ms" in chosen:  # of earlier versions, which had no other rule
            chosen = {**dict.fromkeys(RULES), "silence": chosen.pop("endpoint_ms"), **chosen}
        config = {**self.info["defaults"], **chosen}
        if unknown := config.keys() - {"event", "chunk_ms", *RULES}:
            names = ", ".join(RULES)
            raise Refusal("config", f"{min(unknown)[:40]!r} is not known; there are chunk_ms, {names}")
        chunk_ms = config["chunk_ms"]
        if type(chunk_ms) is not int or chunk_ms not in self.info["chunk_ms"]:
            choices = ", ".join(map(str, self.info["chunk_ms"]))
            raise Refusal("config", f"chunk_ms is {str(chunk_ms)[:40]}; choose among {choices}")
        rules = {name: config[name] for name in RULES}
        for name, value in rules.items():
            if not _is_rule(value):
                low, high = RULE_MS
                raise Refusal("config", f"{name} is {str(value)[:40]}; choose {low} to {high}, or null for none")
        session = Session(self._model.recognizer(chunk_ms), EndpointRules(**rules), chunk_ms)
        session.messages.put_nowait({"event": "ready", "chunk_ms": chunk_ms, **rules})
        return session

    async def _receive(self, socket: web.WebSocketResponse, seconds: float) -> str | bytes:
        try:
            message = await asyncio.wait_for(socket.receive(), seconds)
        except TimeoutError:
            raise Refusal("idle", f"nothing came for {seconds:g} s") from None
        if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
            return message.data
        raise ConnectionResetError("the client is gone, or sent no websocket message")

    async def _receive_audio(self, socket: web.WebSocketResponse, session: Session) -> None:
        """Receive audio until the client ends it, no faster than ``limits.speed`` and than it is computed."""
        limits, messages = self.limits, 0
        while not session.ended:
            message = await self._receive(socket, limits.idle_s)
            messages += 1
            if messages % MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)
            if isinstance(message, str):
                _parse(message, "end")
                session.ended = True
            elif len(message) % 2:
                raise Refusal("message", f"{len(message)} bytes of audio; samples have 2 bytes each")
            else:
                session.receive(message)
            self.rounds.notify()
            received, elapsed = session.received, time.monotonic() - session.began
            if max(received / BYTES_PER_S, elapsed) > limits.session_s:
                raise Refusal("too_long", f"a session may last {limits.session_s:g} s; begin another")
            ahead = received / BYTES_PER_S - BURST_S - limits.speed * elapsed
            if ahead > 0:
                await asyncio.sleep(ahead / limits.speed)
            while len(session.audio) > WAITING_S * BYTES_PER_S:
                session.room.clear()
                await session.room.wait()

    async def _send_messages(self, socket: web.WebSocketResponse, session: Session) -> None:
        while (message := await session.messages.get()) is not None:
            if isinstance(message, Refusal):
                raise message
            await self._send(socket, message)
            self.rounds.notify()

    async def _send(self, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        await asyncio.wait_for(socket.send_str(json.dumps(message, ensure_ascii=False)), self.limits.idle_s)

    async def _run_rounds(self, app: web.Application) -> AsyncIterator[None]:
        """Compute while the application runs."""
        running = asyncio.create_task(self.rounds.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.rounds.shut_down()

    async def _close_sockets(self, app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for socket in self._sockets]
        await asyncio.gather(*(asyncio.wait_for(close, CLOSE_S) for close in closing), return_exceptions=True)


def _connection_of(request: web.Request) -> Connection:
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    connection = request.transport.get_protocol()
    assert isinstance(connection, Connection)
    return connection


async def _wait_for(future: asyncio.Future[None]) -> None:
    await asyncio.shield(future)  # stays usable when the waiting is cancelled


async def _refuse(socket: web.WebSocketResponse, refusal: Refusal) -> None:
    await socket.send_json({"event": "error", "code": refusal.code, "message": str(refusal)})
    await socket.close(code=refusal.close_code)


def _parse(text: str, event: str) -> dict[str, Any]:
    """The JSON object of a text message whose event must be ``event``."""
    if len(text) <= TEXT_LENGTH:
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(text)
            if isinstance(message, dict) and message.get("event") == event:
                return message
    raise Refusal("message", f'a text message that is not understood; expected {{"event": "{event}"}}')


def _is_rule(value: Any) -> bool:
    """Whether this is an endpoint rule that clients may choose: milliseconds, or None."""
    return value is None or (type(value) is int and RULE_MS[0] <= value <= RULE_MS[1])


def _name_of(url: str) -> str:
    """The host in a URL, without its port; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_ip_or_localhost(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of a name; port 0 takes a free one."""
    loop, sockets = asyncio.get_running_loop(), []
    addresses = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, _, _, _, address in dict.fromkeys(addresses):
            sockets.append(listener := socket.create_server(address[:2], family=family, backlog=BACKLOG))
            listener.setblocking(False)
    except OSError:
        for listener in sockets:
            listener.close()
        raise
    return sockets


@contextlib.asynccontextmanager
async def listening(
    server: Server, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[tuple]]:
    """Serve while the block runs.

    Yields:
        addresses, as :meth:`socket.socket.getsockname` gives them.

    Raises:
        OSError: the address is not available.
    """
    runner = web.AppRunner(
        server.application(), access_log=None, shutdown_timeout=CLOSE_S, read_bufsize=READ_BUFFER, lingering_time=0
    )
    await runner.setup()
    assert runner.server is not None
    sockets: list[socket.socket] = []
    accepting: list[asyncio.Task[None]] = []
    try:
        sockets = await _listen(host, port)
        accepting = [asyncio.create_task(server.connections.accept(each, runner.server, tls)) for each in sockets]
        yield [each.getsockname() for each in sockets]
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for each in sockets:
            each.close()
        await runner.cleanup()
        server.connections.close()


async def run(server: Server, host: str, port: int, certificate: Path | None, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        host: address to listen at.
        port: 0 takes a free one.
        certificate: PEM file with certificate and key, for https.
        announce: is called with the address of the page once the server listens.

    Raises:
        UserError: the address is not available, or the certificate cannot be used.
    """
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(certificate)
        except OSError as error:  # SSLError is one
            raise UserError(f"{certificate}: {error}; expected a PEM file with certificate and key") from error
    async with contextlib.AsyncExitStack() as stack:
        try:
            addresses = await stack.enter_async_context(listening(server, host, port, tls))
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        shown = f"[{host}]" if ":" in host else host
        announce(f"{'http' if tls is None else 'https'}://{shown}:{addresses[0][1]}/")
        await stop.wait()


def serve(server: Server, host: str, port: int, certificate: Path | None, threads: int) -> None:
    """Print the address of the page and :func:`run` the server, with computation on ``threads`` CPU threads."""
    log_to_stderr()
    torch.set_num_threads(threads)
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(run(server, host, port, certificate, lambda url: print(f"captions at {url}", flush=True)))
