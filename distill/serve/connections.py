"""Connections of a server: which are accepted, and how long and how much they may cost before they are cut off.

Every connection is counted from the moment it is accepted, before TLS and before a request. It has a few seconds to
become a session or to get its response. The frames of a websocket are counted as they arrive, before they are parsed
and queued, so that empty frames, pings, fragments and whatever else costs time but holds no audio are all limited by
one budget for each session. Longer frames need none: audio is taken at a limited speed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from distill.serve.metrics import Metrics
from distill.serve.refusal import Refusal

HEAD_BYTES = 16384  # of a request
EARLY_BYTES = 65536  # may come after a request, before it is answered
SMALL_FRAME = 320  # bytes of payload: frames with less, which is 10 ms of audio, are counted
FRAMES_PER_S, FRAMES_AT_ONCE = 400, 400  # small ones of one session
STARTS_PER_S, STARTS_AT_ONCE = 20, 100  # connections of one address
ACCEPTED_S, REFUSED_S = 0.005, 0.001  # from one connection to the next, so that sessions go on while many come
PRICE_OF_ABUSE = 10  # a connection that was cut off counts as this many
DISCARDED_BYTES = 1 << 20  # are read and thrown away after a client was refused, so that it can read why
SEND_BUFFER = 1 << 16  # bytes of the kernel's buffer for a client that does not read
BACKLOG = 1024  # connections that wait to be accepted
REPORT_S = 10  # between two log lines about an address's refused connections
REMEMBERED = 10000  # addresses without a connection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a server and of its sessions.

    Attributes:
        sessions: largest number of sessions at a time.
        sessions_per_address: the same for one address of a client.
        pending: largest number of connections at a time that are no sessions (yet).
        request_s: time for a request and its response, or for a handshake and the first message.
        session_s: longest session, both in audio and by the clock.
        idle_s: longest time without a message from the client, and for which it may leave results unread.
        message_bytes: size of one message.
        speed: audio is read at most at this multiple of real time.
    """

    sessions: int = 64
    sessions_per_address: int = 12
    pending: int = 128
    request_s: float = 10
    session_s: float = 3600
    idle_s: float = 30
    message_bytes: int = 1 << 20
    speed: float = 8


class Budget:
    """An allowance that grows with time: ``rate`` a second, up to ``most``."""

    def __init__(self, rate: float, most: float) -> None:
        self.rate, self.most, self._left, self._then = rate, most, most, time.monotonic()

    def left(self) -> float:
        """What may be spent now; negative after an overdraft."""
        now = time.monotonic()
        self._left = min(self.most, self._left + self.rate * (now - self._then))
        self._then = now
        return self._left

    def spend(self, amount: float) -> None:
        """Spend some, down to an overdraft of ``most``."""
        self._left = max(self.left() - amount, -self.most)


class FrameReader:
    """Finds small frames of a websocket (RFC 6455, section 5.2) in a client's bytes as they arrive.

    Attributes:
        closing: a close frame has been found.
    """

    def __init__(self) -> None:
        self.closing = False
        self._header = b""  # the beginning of one that is not complete
        self._payload = 0  # bytes of the frame that are still to come

    def read(self, data: bytes, most: float) -> int:
        """Number of small frames that begin in the next bytes of a stream; stops counting above ``most``.

        Raises:
            Refusal: a frame is not masked.
        """
        data, self._header = self._header + data, b""
        frames, position, end = 0, self._payload, len(data)
        while position + 1 < end and frames <= most:
            first, second = data[position], data[position + 1]
            if not second & 0x80:
                raise Refusal("message", "a frame that is not masked, which no client may send", 1002)
            header = 6 + {0xFE: 2, 0xFF: 8}.get(second, 0)
            if position + header > end:
                break
            payload = int.from_bytes(data[position + 2 : position + header - 4]) if header > 6 else second & 0x7F
            self.closing |= first & 0x0F == 8
            frames += payload < SMALL_FRAME
            position += header + payload
        if position < end:
            self._header, position = data[position:], end
        self._payload = position - end
        return frames


class Connection(asyncio.Protocol):
    """Stands between a client and aiohttp's handler of its connection.

    Args:
        handler: gets the head of one request and, if it becomes a websocket, its frames.
        address: of the client.
        ended: is called when the connection is closed.

    Attributes:
        cut_off: gets an exception when the client has spent its budget.
    """

    def __init__(self, handler: asyncio.Protocol, address: str, ended: Callable[[Connection], None]) -> None:
        self.address = address
        self.cut_off: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opening: asyncio.Task[None] | None = None
        self._handler = handler
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()  # of the request; empty once the handler has it
        self._answering = False
        self._early = b""  # what came after the head, before the response
        self._frames: FrameReader | None = None  # of a websocket
        self._budget = Budget(FRAMES_PER_S, FRAMES_AT_ONCE)
        self._refused = False
        self._discarded = 0

    def abort(self) -> None:
        """Close the connection at once, whatever its state."""
        if self._transport is not None:
            self._transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def begin_frames(self) -> None:
        """The handshake of a websocket is complete."""
        self._frames = FrameReader()
        early, self._early = self._early, b""
        if early:
            self.data_received(early)

    def refuse(self) -> None:
        """Discard what the client still sends; when it answers that the connection is closed, close it."""
        self._refused = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discard(data)
        elif self._frames is not None:
            try:
                left = self._budget.left()
                frames = self._frames.read(data, left)
                if frames > left:
                    raise Refusal("rate", f"more than {FRAMES_PER_S} small messages a second; send longer ones")
            except Refusal as refusal:
                self.refuse()
                self.cut_off.set_exception(refusal)
                self.cut_off.exception()  # in case that nobody waits for it
                return
            self._budget.spend(frames)
            self._handler.data_received(data)
        elif self._answering:
            self._early += data
            if len(self._early) > EARLY_BYTES:
                self.abort()
        else:
            self._read_head(data)

    def _read_head(self, data: bytes) -> None:
        searched = max(0, len(self._head) - 3)
        self._head += data
        end = self._head.find(b"\r\n\r\n", searched) + 4
        if end > 3 or len(self._head) > HEAD_BYTES:  # the handler refuses a head that is too long
            end = end if end > 3 else len(self._head)
            head, self._early = bytes(self._head[:end]), bytes(self._head[end:])
            self._head.clear()
            self._answering = True
            self._handler.data_received(head)

    def _discard(self, data: bytes) -> None:
        assert self._transport is not None
        self._discarded += len(data)
        try:
            small = self._frames.read(data, FRAMES_AT_ONCE) if self._frames is not None else 0
        except Refusal:
            small = FRAMES_AT_ONCE
        if self._frames is not None and self._frames.closing:
            self._transport.close()
        elif small >= FRAMES_AT_ONCE or self._discarded > DISCARDED_BYTES:
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._handler.connection_lost(error)
        self._ended(self)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


@dataclass(eq=False)
class Address:
    """What a server knows of a client's address.

    Attributes:
        starts: budget of new connections.
        connections, sessions: open now.
        refused: number of connections since the last line about them in the log.
        reported: time of that line.
    """

    starts: Budget
    connections: int = 0
    sessions: int = 0
    refused: int = 0
    reported: float = -math.inf


class Connections:
    """All connections of a server.

    Args:
        limits: see :class:`Limits`.
        metrics: counts what is refused.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._pending: dict[Connection, asyncio.TimerHandle] = {}  # oldest first
        self._addresses: dict[str, Address] = {}
        self._open: set[Connection] = set()
        self._sessions = 0
        metrics.sessions.set_function(lambda: self._sessions)
        metrics.connections.set_function(lambda: len(self._open))

    async def accept(
        self, listener: socket.socket, new_handler: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        """Accept connections until cancelled.

        Args:
            listener: does not block.
            new_handler: makes the handler of a connection.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, peer = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors are left, or the client is gone
                log.warning("no connection could be accepted", extra={"error": str(error)})
                await asyncio.sleep(0.1)
                continue
            accepted = self._start(client, group(peer[0]), new_handler, tls)
            await asyncio.sleep(ACCEPTED_S if accepted else REFUSED_S)

    def session_begins(self, connection: Connection) -> None:
        """Count a connection as a session.

        Raises:
            Refusal: there are too many, of all addresses or of this one.
        """
        limits, address = self._limits, self._addresses[connection.address]
        if self._sessions >= limits.sessions:
            raise Refusal("full", "the server is full; try again later", 1013)
        if address.sessions >= limits.sessions_per_address:
            raise Refusal("full", f"your address has {address.sessions} sessions, the most it may have", 1013)
        address.sessions += 1
        self._sessions += 1
        if (timer := self._pending.pop(connection, None)) is not None:
            timer.cancel()

    def session_ends(self, connection: Connection) -> None:
        """Forget a session; one that was cut off costs its address some of its new connections."""
        address = self._addresses[connection.address]
        address.sessions -= 1
        self._sessions -= 1
        if connection.cut_off.done():
            address.starts.spend(PRICE_OF_ABUSE)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.abort()

    def _start(
        self,
        client: socket.socket,
        name: str,
        new_handler: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> bool:
        """Begin a connection, unless its address has begun too many."""
        address = self._addresses.setdefault(name, Address(Budget(STARTS_PER_S, STARTS_AT_ONCE)))
        if address.starts.left() < 1:
            client.close()
            self._metrics.refused.labels("rate").inc()
            address.refused += 1
            if time.monotonic() > address.reported + REPORT_S:  # cheaper than a line that the log leaves out
                log.warning("connections refused", extra={"address": name, "connections": address.refused})
                address.refused, address.reported = 0, time.monotonic()
            return False
        address.starts.spend(1)
        if len(self._pending) >= self._limits.pending:
            self._drop_oldest()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        connection = Connection(new_handler(), name, self._ended)
        address.connections += 1
        self._open.add(connection)
        loop = asyncio.get_running_loop()
        self._pending[connection] = loop.call_later(self._limits.request_s, self._too_slow, connection)
        connection.opening = loop.create_task(self._open_transport(client, connection, tls))
        return True

    async def _open_transport(self, client: socket.socket, connection: Connection, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: connection, client, ssl=tls, ssl_handshake_timeout=self._limits.request_s if tls else None
            )
        except (OSError, asyncio.CancelledError):  # it was given up, or TLS failed
            client.close()
            self._ended(connection)

    def _drop_oldest(self) -> None:
        """Close the oldest pending connection of the address that has most of them."""
        (most, _), *_ = Counter(connection.address for connection in self._pending).most_common(1)
        oldest = next(connection for connection in self._pending if connection.address == most)
        self._drop(oldest, "pending", "connections refused: too many are pending")

    def _too_slow(self, connection: Connection) -> None:
        self._drop(connection, "slow", "connections cut off: no request or handshake in time")

    def _drop(self, connection: Connection, code: str, message: str) -> None:
        self._metrics.refused.labels(code).inc()
        log.warning(message, extra={"address": connection.address})
        self._pending.pop(connection).cancel()
        connection.abort()

    def _ended(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        self._open.discard(connection)
        if (timer := self._pending.pop(connection, None)) is not None:
            timer.cancel()
        self._addresses[connection.address].connections -= 1
        if len(self._addresses) > REMEMBERED:
            self._addresses = {name: each for name, each in self._addresses.items() if each.connections > 0}


def group(address: str) -> str:
    """The part of an address that stands for a client: all of IPv4, the network (/64) of IPv6."""
    number = ipaddress.ip_address(address.split("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        if number.ipv4_mapped is not None:
            return str(number.ipv4_mapped)
        return str(ipaddress.ip_network((number, 64), strict=False))
    return str(number)
