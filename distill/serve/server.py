"""A websocket server with a recognition session for each client; docs/server.md describes the messages.

The event loop exchanges messages with the clients, while a worker thread computes (:mod:`distill.serve.rounds`).

Nothing is dropped: when a session holds a few seconds of audio, its socket is not read until some is computed, and TCP
slows the client down. Likewise, a session whose client does not read its results is not computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from aiohttp import WSCloseCode, WSMsgType, web

from distill.audio import SAMPLE_RATE
from distill.checkpoints.load import load_network
from distill.configuration import ChunkConf, read_conf
from distill.errors import UserError
from distill.serve.rounds import BYTES_PER_S, Refusal, Rounds, Session
from distill.streaming.recognizer import StreamingRecognizer

PAGE = Path(__file__).with_name("page")
PAGE_FILES = ("index.html", "style.css", "app.js", "capture.js", "resample.js")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
CHOICES_MS = (160, 320, 480, 960)
ENDPOINT_MS = (100, 10000)
WAITING_S = 5  # a session that holds more audio than this is not read until some is computed
BURST_S = 10  # this much audio may come at any speed
CLOSE_S = 2  # time for a client to answer that its connection is closed
TEXT_LENGTH = 4096  # characters of a message


@dataclass(frozen=True)
class Limits:
    """Limits of a server and of its sessions.

    Attributes:
        sessions: largest number of sessions at a time.
        session_s: longest session, both in audio and by the clock.
        idle_s: longest time without a message from the client, and for which it may leave results unread.
        message_bytes: size of one message.
        speed: audio is read at most at this multiple of real time.
    """

    sessions: int = 64
    session_s: float = 3600
    idle_s: float = 30
    message_bytes: int = 1 << 20
    speed: float = 8


class Server:
    """Serves one streaming student.

    Args:
        model: directory of the student's training, or a packed model.
        chunk_ms: chunk length for clients that do not choose one.
        endpoint_ms: silence that ends a result, for clients that do not choose it.
        limits: see :class:`Limits`.
        origins: web pages besides the server's own that may connect, such as ``https://captions.example.org``.

    Attributes:
        info: what a client may choose, and the limits, as in the message ``hello``.

    Raises:
        UserError: the model does not stream, or a default is out of range.
    """

    def __init__(
        self,
        model: Path,
        chunk_ms: int = 480,
        endpoint_ms: int = 800,
        limits: Limits | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self.limits = limits or Limits()
        self.origins = frozenset(origin.rstrip("/") for origin in origins)
        self._network, self._token_list, self._config = load_network(model)
        chunk_conf = read_conf(ChunkConf, "chunk_conf", self._config.get("chunk_conf") or None)
        if chunk_conf is None or not self._open(chunk_ms, None).streaming:
            raise UserError(f"{model}: not a streaming student; give one, such as exp/student_stream")
        if not ENDPOINT_MS[0] <= endpoint_ms <= ENDPOINT_MS[1]:
            raise UserError(f"endpoint_ms: {endpoint_ms} is not within {ENDPOINT_MS[0]} to {ENDPOINT_MS[1]}")
        frame_ms = self._network.encoder_frame_ms
        first, last = (frames * frame_ms for frames in chunk_conf.range_in_frames(frame_ms))
        choices = {ms for ms in CHOICES_MS if first <= ms <= last and ms % frame_ms == 0}
        self.info: dict[str, Any] = {
            "model": model.resolve().name,
            "sample_rate": SAMPLE_RATE,
            "token_type": self._config.get("token_type", "char"),
            "chunk_ms": sorted(choices | {chunk_ms}),
            "defaults": {"chunk_ms": chunk_ms, "endpoint_ms": endpoint_ms},
            "limits": asdict(self.limits),
        }
        self.rounds = Rounds()
        self._sockets: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """The page at /, the websocket at /stream, and ``info`` at /info."""
        app = web.Application()
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/info", self._info)
        app.router.add_get("/", self._page)
        app.router.add_get("/{name}", self._page)
        app.cleanup_ctx.append(self._run_rounds)
        app.on_shutdown.append(self._close_sockets)
        return app

    def _open(self, chunk_ms: int, endpoint_ms: int | None) -> StreamingRecognizer:
        return StreamingRecognizer(self._network, self._token_list, self._config, chunk_ms, endpoint_ms)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        if name not in PAGE_FILES:
            raise web.HTTPNotFound(text="not found; the page is at /")
        return web.FileResponse(PAGE / name, headers=PAGE_HEADERS)

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info, headers={"Cache-Control": "no-store"})

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        self._check_origin(request)
        # Uncompressed: a small compressed message may be a large one.
        socket = web.WebSocketResponse(timeout=CLOSE_S, compress=False, max_msg_size=self.limits.message_bytes)
        await socket.prepare(request)
        try:
            if len(self._sockets) >= self.limits.sessions:
                raise Refusal("full", "the server is full; try again later", WSCloseCode.TRY_AGAIN_LATER)
            self._sockets.add(socket)
            await self._converse(socket)
            await asyncio.wait_for(socket.close(), CLOSE_S)
        except* Refusal as group:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(_refuse(socket, group.exceptions[0]), CLOSE_S)
        except* (ConnectionError, TimeoutError):
            pass  # the client is gone, or does not read
        finally:
            self._sockets.discard(socket)
            if request.transport is not None:
                request.transport.abort()  # unlike close, does not wait for a client that does not read
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """Refuse web pages of other sites, which a browser would let connect to a server on its own machine.

        A page from this server's address may connect if the address is a number or localhost. Anybody can make another
        name point to this machine, so such names must be in ``origins``.
        """
        origin = request.headers.get("Origin")
        if origin is None or origin in self.origins:
            return
        page = urlsplit(origin)
        if page.netloc != request.host or not _is_ip_or_localhost(page.hostname or ""):
            raise web.HTTPForbidden(text=f"pages of {origin} may not connect; start the server with --origin {origin}")

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        """Run a session, from ``hello`` to ``end``.

        Raises:
            Refusal, ConnectionError, TimeoutError, or a group of them: why it ended early.
        """
        await self._send(socket, {"event": "hello", **self.info})
        session = await self._configure(socket)
        self.rounds.sessions.add(session)
        try:
            async with asyncio.TaskGroup() as tasks:  # if one of the two fails, the other is cancelled
                tasks.create_task(self._send_messages(socket, session))
                await self._receive_audio(socket, session)
        finally:
            self.rounds.sessions.discard(session)

    async def _configure(self, socket: web.WebSocketResponse) -> Session:
        """Open the session that the client's first message describes."""
        message = await self._receive(socket)
        if isinstance(message, bytes):
            raise Refusal("message", 'audio came first; the first message is {"event": "config"}')
        config = {**self.info["defaults"], **_parse(message, "config")}
        if unknown := config.keys() - {"event", "chunk_ms", "endpoint_ms"}:
            raise Refusal("config", f"{min(unknown)[:40]!r} is not known; there are chunk_ms and endpoint_ms")
        chunk_ms, endpoint_ms = config["chunk_ms"], config["endpoint_ms"]
        if type(chunk_ms) is not int or chunk_ms not in self.info["chunk_ms"]:
            choices = ", ".join(map(str, self.info["chunk_ms"]))
            raise Refusal("config", f"chunk_ms is {str(chunk_ms)[:40]}; choose among {choices}")
        low, high = ENDPOINT_MS
        if endpoint_ms is not None and (type(endpoint_ms) is not int or not low <= endpoint_ms <= high):
            raise Refusal("config", f"endpoint_ms is {str(endpoint_ms)[:40]}; choose {low} to {high}, or null for none")
        session = Session(self._open(chunk_ms, endpoint_ms), chunk_ms)
        session.messages.put_nowait({"event": "ready", "chunk_ms": chunk_ms, "endpoint_ms": endpoint_ms})
        return session

    async def _receive(self, socket: web.WebSocketResponse) -> str | bytes:
        try:
            message = await asyncio.wait_for(socket.receive(), self.limits.idle_s)
        except TimeoutError:
            raise Refusal("idle", f"nothing came for {self.limits.idle_s:g} s") from None
        if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
            return message.data
        raise ConnectionResetError("the client is gone, or sent no websocket message")

    async def _receive_audio(self, socket: web.WebSocketResponse, session: Session) -> None:
        """Receive audio until the client ends it, no faster than ``limits.speed`` and than it is computed."""
        limits, started, received = self.limits, time.monotonic(), 0
        while not session.ended:
            message = await self._receive(socket)
            if isinstance(message, str):
                _parse(message, "end")
                session.ended = True
            elif len(message) % 2:
                raise Refusal("message", f"{len(message)} bytes of audio; samples have 2 bytes each")
            else:
                session.audio += message
                received += len(message)
            self.rounds.notify()
            elapsed = time.monotonic() - started
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


async def _refuse(socket: web.WebSocketResponse, refusal: BaseException) -> None:
    assert isinstance(refusal, Refusal)
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


def _is_ip_or_localhost(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


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
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        shown = f"[{host}]" if ":" in host else host
        announce(f"{'http' if tls is None else 'https'}://{shown}:{runner.addresses[0][1]}/")
        await stop.wait()
    finally:
        await runner.cleanup()


def serve(server: Server, host: str, port: int, certificate: Path | None, threads: int) -> None:
    """Print the address of the page and :func:`run` the server, with computation on ``threads`` CPU threads."""
    torch.set_num_threads(threads)
    asyncio.run(run(server, host, port, certificate, lambda url: print(f"captions at {url}", flush=True)))
