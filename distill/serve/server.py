"""A websocket server: a recognition session per client, all of them computed together; docs/server.md has the messages.

The event loop talks to the clients and never computes. One worker thread computes in rounds: a round takes at most a
chunk of audio from every session that has some, runs them as one batch (:func:`accept_together`), and hands the results
back. What arrives meanwhile waits for the next round, so batches grow with the load and a lone client waits for nobody.

Nothing is dropped: a session holds a few seconds of audio, then its socket is not read until there is room, and TCP
slows the client down. A client that does not read its results stops being computed in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from distill.checkpoints.load import load_network
from distill.configuration import ChunkConf, read_conf
from distill.errors import UserError
from distill.streaming.recognizer import SAMPLE_RATE, StreamingRecognizer, accept_together

PAGE = Path(__file__).with_name("page")
PAGE_FILES = ("index.html", "style.css", "app.js", "capture.js", "resample.js")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
BYTES_PER_S = 2 * SAMPLE_RATE
CHOICES_MS = (160, 320, 480, 960)
ENDPOINT_MS = (100, 10000)
WAITING_S = 5  # audio that a session holds before its socket is read no further
WAITING_RESULTS = 50  # results that a session holds before it is computed no further
BURST_S = 10  # audio that may come at any speed
CLOSE_S = 2  # for a client to answer that its connection is closed
TEXT_LENGTH = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        sessions: at a time.
        session_s: length of a session, in audio and by the clock.
        idle_s: silence on the socket, and for how long a client may leave its results unread.
        message_bytes: of one message.
        speed: audio is read no faster than so many times real time.
    """

    sessions: int = 64
    session_s: float = 3600
    idle_s: float = 30
    message_bytes: int = 1 << 20
    speed: float = 8


class Refusal(Exception):
    """Ends a session with one line to its client. ``code`` is a word for programs."""

    def __init__(self, code: str, message: str, close_code: int = WSCloseCode.POLICY_VIOLATION) -> None:
        super().__init__(message)
        self.code = code
        self.close_code = close_code


Message = dict[str, Any] | Refusal | None  # for the client; None closes the connection


@dataclass(eq=False)
class Session:
    """A client's recogniser and what lies between them.

    Attributes:
        audio: received, not computed yet.
        room: set when some of it has gone.
        ended: the client has sent all.
        finished: all has gone.
        finals: final results so far.
        messages: not sent yet.
    """

    recognizer: StreamingRecognizer
    chunk_ms: int
    audio: bytearray = field(default_factory=bytearray)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    finished: bool = False
    finals: int = 0
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)


@dataclass
class Share:
    """A session's part in a round: a piece of its audio, and whether it is the last."""

    session: Session
    piece: np.ndarray
    last: bool


class Server:
    """Sessions of one streaming student.

    Args:
        model: directory of the student's training.
        chunk_ms: for clients that do not choose.
        endpoint_ms: likewise.
        limits: see :class:`Limits`.
        origins: web pages besides the server's own that may connect, such as ``https://captions.example.org``.
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
        self.sessions: set[Session] = set()
        self._sockets: set[web.WebSocketResponse] = set()
        self._work = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "recognition")

    def application(self) -> web.Application:
        """The page at /, the websocket at /stream, and at /info what a client may choose."""
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

    # Clients

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
            pass  # it vanished, or does not read
        finally:
            self._sockets.discard(socket)
            if request.transport is not None:
                request.transport.abort()  # closing would wait for a client that does not read
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """Refuse pages of other sites: a browser would let them use a server on its own machine.

        A page from this server's own address may connect if that is a number or localhost. A name could be pointed at
        this machine by anybody, so names must be given.
        """
        origin = request.headers.get("Origin")
        if origin is None or origin in self.origins:
            return
        page = urlsplit(origin)
        if page.netloc != request.host or not _is_number_or_localhost(page.hostname or ""):
            raise web.HTTPForbidden(text=f"pages of {origin} may not connect; start the server with --origin {origin}")

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        """One session, from hello to end.

        Raises:
            Refusal, ConnectionError, TimeoutError: or groups of these: what ended it early.
        """
        await self._send(socket, {"event": "hello", **self.info})
        session = await self._configure(socket)
        self.sessions.add(session)
        try:
            async with asyncio.TaskGroup() as tasks:  # where one of the two fails, the other stops
                tasks.create_task(self._send_messages(socket, session))
                await self._receive_audio(socket, session)
        finally:
            self.sessions.discard(session)

    async def _configure(self, socket: web.WebSocketResponse) -> Session:
        """The session that the client's first message asks for."""
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
        raise ConnectionResetError("the client has gone, or sent what is no websocket message")

    async def _receive_audio(self, socket: web.WebSocketResponse, session: Session) -> None:
        """Take in audio until the client says that it ends, no faster than allowed and than it is computed."""
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
            self._work.set()
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
            self._work.set()  # there is room for results again

    async def _send(self, socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
        await asyncio.wait_for(socket.send_str(json.dumps(message, ensure_ascii=False)), self.limits.idle_s)

    # Computation

    async def _run_rounds(self, app: web.Application) -> AsyncIterator[None]:
        """The rounds, for as long as the application runs."""
        rounds = asyncio.create_task(self._rounds())
        yield
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
        self._worker.shutdown()

    async def _rounds(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            while shares := self._next_round():
                outcomes = await loop.run_in_executor(self._worker, _compute, shares)
                for share, outcome in zip(shares, outcomes, strict=True):
                    for message in outcome:
                        share.session.messages.put_nowait(message)

    def _next_round(self) -> list[Share]:
        shares = []
        for session in self.sessions:
            if session.finished or session.messages.qsize() >= WAITING_RESULTS or not (session.audio or session.ended):
                continue
            size = session.chunk_ms * BYTES_PER_S // 1000
            piece = np.frombuffer(bytes(session.audio[:size]), "<i2").astype(np.float32) / 32768
            del session.audio[:size]
            session.room.set()
            session.finished = session.ended and not session.audio
            shares.append(Share(session, piece, session.finished))
        return shares

    async def _close_sockets(self, app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for socket in self._sockets]
        await asyncio.gather(*(asyncio.wait_for(close, CLOSE_S) for close in closing), return_exceptions=True)


def _compute(shares: Sequence[Share]) -> list[list[Message]]:
    """What each session of a round is to be told. Runs in the worker."""
    outcomes: dict[Session, list[Message]] = {share.session: [] for share in shares}
    by_chunk: dict[int, list[Share]] = {}
    for share in shares:
        by_chunk.setdefault(share.session.chunk_ms, []).append(share)
    for alike in by_chunk.values():
        try:
            results = accept_together([share.session.recognizer for share in alike], [share.piece for share in alike])
            for share, new in zip(alike, results, strict=True):
                session = share.session
                session.finals += sum(result["event"] == "final" for result in new)
                outcomes[session] += [dict(result) for result in new]
                if share.last:
                    final = session.recognizer.finish()
                    if final["tokens"] or not session.finals:  # nothing but silence after an endpoint is no result
                        outcomes[session].append(dict(final))
                    outcomes[session] += [{"event": "end", "audio_s": final["audio_s"]}, None]
        except Exception:
            log.exception("a round failed; its %d sessions are closed", len(alike))
            for share in alike:
                outcomes[share.session] = [Refusal("internal", "the recogniser failed", WSCloseCode.INTERNAL_ERROR)]
    return [outcomes[share.session] for share in shares]


async def _refuse(socket: web.WebSocketResponse, refusal: BaseException) -> None:
    assert isinstance(refusal, Refusal)
    await socket.send_json({"event": "error", "code": refusal.code, "message": str(refusal)})
    await socket.close(code=refusal.close_code)


def _parse(text: str, event: str) -> dict[str, Any]:
    """The object of a text message, which must be an ``event``."""
    if len(text) <= TEXT_LENGTH:
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(text)
            if isinstance(message, dict) and message.get("event") == event:
                return message
    raise Refusal("message", f'a text message that is not understood; expected {{"event": "{event}"}}')


def _is_number_or_localhost(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


async def run(server: Server, host: str, port: int, certificate: Path | None, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. ``announce`` gets the address of the page; port 0 takes a free one.

    Raises:
        UserError: nothing can listen at that address, or the certificate is no PEM file with its key.
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
