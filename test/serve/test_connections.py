"""Clients that want the server's time, memory or connections: each is limited, and nobody else notices."""

import asyncio
import contextlib
import json
import logging
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_server import CONFIG, alone, answer, audio, finals, frame, raw, run, same, serving, until

from distill.serve import connections
from distill.serve import rounds as rounds_module
from distill.serve.connections import SMALL_FRAME, Budget, FrameReader, Limits, group
from distill.serve.log import LINES_AT_ONCE, JsonLines, RateLimit
from distill.serve.metrics import Metrics
from distill.serve.refusal import Refusal
from distill.serve.rounds import BYTES_PER_S, NOT_LIVE_AT_ONCE, Rounds, Session
from distill.serve.server import Server, listening


async def connect(url: str, data: bytes = b"", source: str = "127.0.0.1", **options):
    host, port = url.split("//")[1].split("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0), **options)
    writer.write(data)
    return reader, writer


async def closed(reader: asyncio.StreamReader, seconds: float = 10) -> float:
    """Seconds until the server closes a connection."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
    return time.monotonic() - started


async def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    site = url.replace("ws:", "http:").removesuffix("/stream")
    async with aiohttp.ClientSession() as http, http.get(site + path, headers=headers) as response:
        return response.status, await response.text()


async def figure(url: str, name: str) -> float:
    """A figure of the server's, by its name and labels."""
    _, text = await get(url, "/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


HALF = b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize("data", [b"", HALF, b"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_connection_that_does_not_become_a_session_is_closed_in_time(model, data):
    """Also one whose request comes byte by byte; a request for the page is answered at once and closed."""

    async def slowly(writer) -> None:
        for byte in HALF * 10:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)

    async def scenario():
        async with serving(model, request_s=0.6) as (_, url):
            reader, writer = await connect(url, data)
            if b"app.js" in data:
                assert await closed(reader) < 0.5
                return
            sending = asyncio.create_task(slowly(writer))
            assert 0.3 < await closed(reader) < 3
            sending.cancel()
            assert await figure(url, 'distill_refused_total{reason="slow"}') == 1

    run(scenario())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_same_before_tls(model, tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out certificate -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    trust = ssl.create_default_context(cafile=str(tmp_path / "certificate"))

    async def scenario():
        server = Server(model, limits=Limits(request_s=0.6, pending=3))
        async with listening(server, "127.0.0.1", 0, tls) as addresses:
            url = f"wss://127.0.0.1:{addresses[0][1]}/stream"
            silent = [await connect(url) for _ in range(5)]
            assert await closed(silent[0][0]) < 0.5, "the oldest make room"
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(url, ssl=trust, server_hostname="localhost") as s,
            ):
                assert (await s.receive_json())["event"] == "hello"
                assert 0.2 < await closed(silent[4][0]) < 3

    run(scenario())


def test_pending_connections_are_bounded_and_the_oldest_make_room(model):
    async def scenario():
        async with serving(model, pending=4) as (server, url):
            waiting = [await connect(url, HALF) for _ in range(10)]
            for reader, _ in waiting[:6]:
                assert await closed(reader) < 2
            assert len(server.connections._open) == 4
            same(await finals(url, [audio(1)]), alone(model, audio(1)))
            assert await figure(url, 'distill_refused_total{reason="pending"}') >= 6

    run(scenario())


def test_an_address_has_only_so_many_sessions_and_another_one_has_its_own(model):
    async def scenario():
        async with serving(model, sessions_per_address=2) as (_, url):
            async with aiohttp.ClientSession() as http:
                first, second = await http.ws_connect(url), await http.ws_connect(url)
                replies, code = await answer(url)
                assert ([m["code"] for m in replies], code) == (["full"], 1013) and "address" in replies[0]["message"]
                other = aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0)))
                async with other, other.ws_connect(url) as third:
                    assert (await third.receive_json())["event"] == "hello"
                await first.close()
                await second.close()

    run(scenario())


def test_an_address_that_connects_too_often_is_refused_and_no_other(model, monkeypatch):
    monkeypatch.setattr(connections, "STARTS_AT_ONCE", 5)
    monkeypatch.setattr(connections, "STARTS_PER_S", 0.1)

    async def scenario():
        async with serving(model) as (_, url):
            for _ in range(5):
                _, writer = await connect(url, source="127.0.0.2")
                writer.close()
            reader, _ = await connect(url, source="127.0.0.2")
            assert await closed(reader) < 1
            same(await finals(url, [audio(1)]), alone(model, audio(1)))
            assert await figure(url, 'distill_refused_total{reason="rate"}') == 1

    run(scenario())


def unfinished(opcode: int, payload: bytes = b"") -> bytes:
    return bytes([opcode]) + frame(opcode, payload)[1:]


SMALL = {
    "empty": frame(2, b""),
    "one sample": frame(2, b"\0\0"),
    "ping": frame(9, b""),
    "pong": frame(10, b""),
    "fragment": unfinished(0),
    "text": frame(1, b"{}"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_flood_of_small_frames_is_cut_off_with_an_error(model, name):
    first = CONFIG + (unfinished(2, b"\0\0") if name == "fragment" else b"")

    async def scenario():
        async with serving(model) as (server, url):
            reader, writer = await raw(url, first)
            await asyncio.sleep(0.1)
            writer.write(SMALL[name] * 20000)
            received = b""
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):
                    while part := await reader.read(1 << 16):
                        received += part
            assert b'"code": "rate"' in received
            await until(lambda: not server.rounds.sessions and not server._sockets)
            assert await figure(url, 'distill_cut_off_total{code="rate"}') == 1

    run(scenario())


class Recorder(asyncio.Protocol):
    """Stands for aiohttp's handler, and for the transport."""

    def __init__(self):
        self.received, self.calls = b"", []

    def data_received(self, data):
        self.received += data

    def connection_made(self, transport):
        pass

    def pause_reading(self):
        self.calls.append("pause")

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("flood", [frame(2, b"") * 1000, frame(2, bytes(10**6)) * 2], ids=["small", "large"])
def test_after_a_refusal_nothing_is_parsed_and_reading_ends(flood):
    async def scenario():
        handler = Recorder()
        connection = connections.Connection(handler, "192.0.2.1", lambda connection: None)
        connection._transport = handler
        connection.data_received(b"GET / HTTP/1.1\r\n\r\n" + frame(1, b"early"))
        assert handler.received == b"GET / HTTP/1.1\r\n\r\n"
        connection.begin_frames()
        assert handler.received.endswith(frame(1, b"early"))
        handler.received = b""
        connection.refuse()
        connection.data_received(frame(2, bytes(640)))
        assert not handler.received and not handler.calls
        connection.data_received(flood)
        assert not handler.received and handler.calls == ["pause"]

    asyncio.run(scenario())


def test_a_client_that_was_refused_is_closed_when_it_answers_so():
    async def scenario():
        handler = Recorder()
        connection = connections.Connection(handler, "192.0.2.1", lambda connection: None)
        connection._transport = handler
        connection.begin_frames()
        connection.refuse()
        connection.data_received(frame(2, bytes(640)) + frame(8, b"")[:3])
        assert not handler.calls
        connection.data_received(frame(8, b"")[3:])
        assert handler.calls == ["close"] and not handler.received

    asyncio.run(scenario())


def test_audio_in_pieces_of_ten_milliseconds_may_come_at_any_speed(model):
    data = audio(20)
    parts = [data[i : i + 320] for i in range(0, len(data), 320)]

    async def scenario():
        async with serving(model) as (_, url):
            same(await finals(url, parts), alone(model, data))

    run(scenario())


def test_a_frame_that_is_not_masked_is_refused(model):
    async def scenario():
        async with serving(model) as (_, url):
            reader, _ = await raw(url, CONFIG + b"\x82\x04abcd")
            received = await asyncio.wait_for(reader.read(), 5)
            assert b"not masked" in received and received[-2:] == struct.pack("!H", 1002)

    run(scenario())


def test_a_message_of_a_mebibyte_is_accepted_and_no_longer_one(model):
    async def scenario():
        async with serving(model) as (_, url):
            limit = 1 << 20
            data = audio(0.5) + bytes(limit - len(audio(0.5)))
            same(await finals(url, [data]), alone(model, data))
            replies, code = await answer(url, '{"event": "config"}', bytes(limit + 2))
            assert code == 1009

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://[\r\n\r\n", 403),
        (b"GET /info HTTP/1.1\r\nHost: [\r\n\r\n", 403),
        (b"GET /info HTTP/1.1\r\n\r\n", 403),
        (b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: \x01\xff\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999999\r\n\r\nabc", 405),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 400),
    ],
)
def test_a_malformed_request_is_answered_without_a_traceback(model, caplog, request_, status):
    async def scenario():
        async with serving(model) as (server, url):
            reader, _ = await connect(url, request_)
            received = await asyncio.wait_for(reader.read(), 5)
            assert received.startswith(f"HTTP/1.1 {status} ".encode()) or received.startswith(b"HTTP/1.0 400"), received
            await until(lambda: not server.connections._open)

    run(scenario())
    lines = [JsonLines().format(record) for record in caplog.records]
    assert not any("raceback" in line or "\n" in line for line in lines), lines


@pytest.mark.parametrize("path", ["/", "/app.js", "/info", "/metrics", "/health"])
def test_a_name_that_somebody_lets_point_here_gets_nothing(model, path):
    async def scenario():
        async with serving(model) as (server, url):
            assert (await get(url, path))[0] == 200
            assert (await get(url, path, Host="localhost:80"))[0] == 200
            assert (await get(url, path, Host="[::1]:80"))[0] == 200
            status, text = await get(url, path, Host="evil.example")
            assert status == 403 and "evil.example" in text and "--origin" in text
            server.origins = frozenset({"https://captions.example.org"})
            assert (await get(url, path, Host="captions.example.org"))[0] == 200

    run(scenario())


def test_an_error_that_quotes_the_client_is_one_line(model):
    for config in ({"chunk_ms": "a\nb\x1b[2J\u202e"}, {"a\nb\x1b": 1}, {"silence": "\r\n"}):

        async def scenario(config=config):
            async with serving(model) as (_, url):
                replies, _ = await answer(url, json.dumps({"event": "config", **config}))
                assert replies[-1]["code"] == "config" and replies[-1]["message"].isprintable()

        run(scenario())


def test_a_client_that_reads_nothing_is_cut_off_when_its_socket_is_full(model):
    """Results of the usual size, and the socket of an operating system."""

    async def scenario():
        async with serving(model, idle_s=1.0) as (server, url):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            host, port = url.split("//")[1].split("/")[0].split(":")
            await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
            reader, writer = await asyncio.open_connection(sock=client, limit=1024)
            writer.write(
                b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            writer.write(frame(1, b'{"event": "config", "silence": null}'))
            data = audio(1)

            async def send() -> None:
                while True:
                    writer.write(frame(2, data))
                    await writer.drain()

            sending = asyncio.create_task(send())
            await until(lambda: server.rounds.sessions, 5)
            unsent = 0
            async with asyncio.timeout(30):
                while server.rounds.sessions or server._sockets:
                    sizes = [each._transport.get_write_buffer_size() for each in server.connections._open]
                    unsent = max([unsent, *sizes])
                    await asyncio.sleep(0.01)
            assert (1 << 16) <= unsent < 1 << 17, "every message waits until the one before is on its way"
            sending.cancel()
            writer.transport.abort()

    run(scenario())


def test_connections_are_forgotten_when_they_end(model):
    async def scenario():
        async with serving(model) as (server, url):
            for data in (b"", HALF, b"nonsense\r\n\r\n"):
                for _ in range(5):
                    _, writer = await connect(url, data)
                    writer.transport.abort()
            for _ in range(5):
                _, writer = await raw(url, CONFIG, frame(2, audio(0.1)))
                writer.transport.abort()
            everything = server.connections
            await until(lambda: not (everything._open or everything._pending or everything._sessions))
            assert all(each.connections == each.sessions == 0 for each in everything._addresses.values())
            assert await figure(url, "distill_sessions") == 0 and await figure(url, "distill_connections") == 1

    run(scenario())


@given(
    st.lists(st.tuples(st.sampled_from((0, 1, 125, 126, 319, 320, 65535, 65536)), st.booleans()), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_frames_are_counted_wherever_the_bytes_are_cut(sizes, cuts):
    data, position, reader, counted = b"", 0, FrameReader(), 0
    for size, close in sizes:
        length = bytes([0x80 | size]) if size < 126 else b"\xff" + struct.pack("!Q", size)
        length = b"\xfe" + struct.pack("!H", size) if 125 < size < 65536 else length
        data += bytes([0x88 if close else 0x82]) + length + b"mask" + bytes(size)
    number = 0
    while position < len(data):
        step = cuts[number % len(cuts)] if number < 200 else 5000
        counted += reader.read(data[position : position + step], 1000)
        position, number = position + step, number + 1
    assert counted == sum(size < SMALL_FRAME for size, _ in sizes)
    assert reader.closing == any(close for _, close in sizes)
    with pytest.raises(Refusal, match="not masked"):
        reader.read(b"\x82\x01a", 1000)


def test_budgets_and_addresses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    budget = Budget(rate=10, most=50)
    budget.spend(45)
    assert budget.left() == 5
    budget.spend(1000)
    assert budget.left() == -50, "an overdraft is bounded, or an address would never come back"
    now[0] = 6
    assert budget.left() == 10
    assert group("192.0.2.1") == "192.0.2.1" == group("::ffff:192.0.2.1")
    assert group("2001:db8::1") == group("2001:db8::2:1%eth0") != group("2001:db8:0:1::1")


def test_live_sessions_are_computed_before_those_ahead_or_behind():
    """With audio in all of them: live ones alone; then the others, few at a time and in turn."""
    rounds = Rounds(Metrics())
    opened = time.monotonic() - 10
    sessions = {name: Session(None, None, 480, began=opened) for name in ("live", "quiet", "ahead", "behind", "late")}
    for session in sessions.values():
        rounds.sessions[session] = None
    sessions["ahead"].taken = sessions["ahead"].received = 12 * BYTES_PER_S
    for name, seconds in {"live": 0.5, "ahead": 0.5, "behind": 4, "late": 4}.items():
        sessions[name].receive(bytes(int(seconds * BYTES_PER_S)))

    def names() -> list[str]:
        by_session = {id(session): name for name, session in sessions.items()}
        return [by_session[id(share.session)] for share in rounds._next_shares()]

    assert names() == ["live"] and names() == ["live"]  # 480 ms, and the 20 that are left
    order = [names() for _ in range(6)]
    assert all(len(each) == NOT_LIVE_AT_ONCE for each in order)
    assert sorted(sum(order[:3], [])) == ["ahead", "behind", "late"] == sorted(sum(order[3:], []))
    del rounds.sessions[sessions["live"]], rounds.sessions[sessions["quiet"]]
    assert sorted(names()) == ["behind", "late"], "nobody is live: all at once"


def test_figures_and_health(model, monkeypatch):
    async def scenario():
        async with serving(model) as (server, url):
            same(await finals(url, [audio(2)]), alone(model, audio(2)))
            await answer(url, "nonsense")
            assert await figure(url, "distill_sessions_started_total") == 2
            assert await figure(url, 'distill_cut_off_total{code="message"}') == 1
            assert await figure(url, "distill_audio_seconds_total") == pytest.approx(2)
            assert await figure(url, "distill_result_delay_seconds_count") >= 4
            assert 0 < await figure(url, "distill_result_delay_seconds_sum") < 60
            assert await get(url, "/health") == (200, '{"status": "ok", "sessions": 0}')
            monkeypatch.setattr(rounds_module, "STUCK_S", -1)
            server.rounds._round_began = time.monotonic()
            assert (await get(url, "/health"))[0] == 503

    run(scenario())


def lines_of(log_many: Callable[[logging.Logger], None]) -> list[dict]:
    lines: list[dict] = []

    class Collect(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(JsonLines().format(record)))

    logger, handler = logging.Logger("test"), Collect()
    handler.addFilter(RateLimit())
    logger.addHandler(handler)
    log_many(logger)
    return lines


def test_log_lines_are_json_and_so_many_of_a_kind(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("distill.serve.log.time.monotonic", lambda: now[0])

    def log_many(logger: logging.Logger) -> None:
        for second in range(1000):
            now[0] = second / 100
            logger.warning("flood\n of %s", "x" * 10000, extra={"address": "192.0.2.1", "code": "rate"})
        logger.info("another kind")
        now[0] += 20
        try:
            raise ValueError("odd")
        except ValueError:
            logger.exception("broken")

    lines = lines_of(log_many)
    assert len(lines) == LINES_AT_ONCE + 2
    assert lines[0]["address"] == "192.0.2.1" and lines[0]["level"] == "warning" and len(lines[0]["event"]) == 300
    assert lines[-1]["error"] == "ValueError: odd" and "Traceback" in lines[-1]["traceback"]


def test_what_was_left_out_of_the_log_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("distill.serve.log.time.monotonic", lambda: now[0])

    def log_many(logger: logging.Logger) -> None:
        for number in range(LINES_AT_ONCE + 8):
            now[0] = 100.0 if number == LINES_AT_ONCE + 7 else 0.0
            logger.warning("flood")

    assert [line.get("left_out") for line in lines_of(log_many)] == [None] * LINES_AT_ONCE + [7]
