"""The server over real sockets: right results for all, and one client's behaviour is nobody else's trouble."""

import asyncio
import contextlib
import json
import os
import resource
import time
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest
from tiny_exports import export
from tiny_networks import speech

from distill.checkpoints.load import load_network
from distill.decode.settings import DecodeConf
from distill.decode.stream_results import SHERPA_RULES, EndpointRules
from distill.errors import UserError
from distill.export.recognizer import Recognizer as OnnxRecognizer
from distill.serve import models, rounds
from distill.serve import server as server_module
from distill.serve.client import in_real_time, pcm, pieces, recognize
from distill.serve.rounds import BYTES_PER_S, WAITING_RESULTS
from distill.serve.server import WAITING_S, Limits, Server, listening
from distill.streaming import Recognizer

FAST = 1000.0  # times real time: no pacing


@contextlib.asynccontextmanager
async def serving(model, **limits) -> AsyncIterator[tuple[Server, str]]:
    """A server on a free port, and the address of its websocket."""
    server = Server(model, limits=Limits(**{"speed": FAST, **limits}))
    async with listening(server, "127.0.0.1", 0) as addresses:
        yield server, f"ws://127.0.0.1:{addresses[0][1]}/stream"


def run(scenario, timeout: float = 60) -> None:
    asyncio.run(asyncio.wait_for(scenario, timeout))


def audio(seconds: float, seed: int = 0) -> bytes:
    return pcm(speech(int(16000 * seconds), seed).numpy())


def alone(model, data: bytes, chunk_ms: int = 480, rules: EndpointRules = SHERPA_RULES) -> list[dict]:
    """Final results of the recogniser without a server."""
    stream = Recognizer.from_pretrained(model, chunk_ms, rules).create_stream()
    stream.accept(np.frombuffer(data, "<i2").astype(np.float32) / 32768)
    finals = [result for result in stream.decode() if result["event"] == "final"]
    stream.finish()
    (last,) = stream.decode()
    return finals + ([last] if last["tokens"] or not finals else [])


async def each(items: list[bytes]) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def finals(url: str, parts: list[bytes], **config) -> list[dict]:
    messages = [message async for message in recognize(url, each(parts), **config)]
    assert [m["event"] for m in messages[:2]] == ["hello", "ready"] and messages[-1]["event"] == "end"
    return [message for message in messages if message["event"] == "final"]


def same(results: list[dict], expected: list[dict]) -> None:
    assert [r["text"] for r in results] == [r["text"] for r in expected]
    for result, other in zip(results, expected, strict=True):
        assert [(t["token"], t["start_s"], t["end_s"]) for t in result["tokens"]] == [
            (t["token"], t["start_s"], t["end_s"]) for t in other["tokens"]
        ]


async def raw(url: str, *payloads: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A websocket without a library: the handshake is done, and the bytes are sent."""
    host, port = url.removeprefix("ws://").split("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    for payload in payloads:
        writer.write(payload)
    return reader, writer


def frame(opcode: int, payload: bytes, length: int | None = None) -> bytes:
    """A client's frame, masked with zeros, that may promise another length."""
    length = len(payload) if length is None else length
    return bytes([0x80 | opcode, 0x80 | 127]) + length.to_bytes(8, "big") + bytes(4) + payload


CONFIG = frame(1, b'{"event": "config"}')


async def answer(url: str, *messages: str | bytes) -> tuple[list[dict], int | None]:
    """What the server says to some messages, and the code with which it closes."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        for message in messages:
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
        replies = [message.json() async for message in socket]
        return replies, socket.close_code


async def until(condition, timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def memory_mb() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize("size", [1, 2 * 333, 2 * 7680, 10**6], ids=["byte pairs", "small", "chunk", "all"])
def test_results_are_those_of_the_recognizer(model, size):
    data = audio(0.02 if size == 1 else 6.2)
    parts = [data[start : start + 2 * size] for start in range(0, len(data), 2 * size)]

    async def scenario():
        async with serving(model) as (server, url):
            same(await finals(url, parts), alone(model, data))
            same(await finals(url, parts, chunk_ms=160), alone(model, data, 160))
            assert not server.rounds.sessions

    run(scenario())


@pytest.fixture
def blank_in_silence(model, monkeypatch):
    """Noise makes the tiny student talk on, so its blank is made likely where it is quiet."""
    loaded = load_network(model)
    network = loaded.network
    stream_together = network.stream_together

    def blank_where_quiet(states):
        quiet = [float(state.samples[:, :6000].abs().max()) < 1e-6 for state in states]
        logits = stream_together(states)
        for row, silent in zip(logits, quiet, strict=True):
            row[..., 0] += 100.0 * silent
        return logits

    monkeypatch.setattr(network, "stream_together", blank_where_quiet)
    monkeypatch.setattr(models, "load_network", lambda path: loaded)


@pytest.mark.usefixtures("blank_in_silence")
def test_successive_finals_at_silence(model):
    with_silence = np.concatenate([speech(16000).numpy(), np.zeros(32000, np.float32)] * 3)[:-32000]

    async def scenario():
        async with serving(model) as (_, url):
            results = await finals(url, pieces(pcm(with_silence)))
            assert len(results) == 3
            starts = [result["tokens"][0]["start_s"] for result in results]
            assert 0 <= starts[0] < 1 and 2.5 < starts[1] < 4 and 5.5 < starts[2] < 7
            assert len(await finals(url, pieces(pcm(with_silence)), silence=5000)) == 1
            assert len(await finals(url, pieces(pcm(with_silence)), endpoint_ms=None)) == 1, "of earlier versions"

    run(scenario())


RULES = {
    "silence": ({"silence": 500, "empty": None, "length": None}, ["silence", "end"]),
    "empty": ({"silence": None, "empty": 1500, "length": None}, ["empty", "end"]),
    "length": ({"silence": None, "empty": None, "length": 2000}, ["length", "length", "end"]),
    "all": ({"silence": 500, "empty": 1000, "length": 2500}, ["empty", "silence", "length"]),
}


@pytest.mark.usefixtures("blank_in_silence")
@pytest.mark.parametrize("name", RULES)
def test_each_rule_of_a_client_ends_results_and_nothing_is_lost(model, name):
    """2 s of silence, 1 s of speech, 2 s of silence, 4 s of speech, 1 s of silence."""
    seconds = (0, 2), (1, 2), (4, 1)
    parts = [np.r_[speech(16000 * n + 1, n).numpy()[1:], np.zeros(16000 * quiet, np.float32)] for n, quiet in seconds]
    data = pcm(np.concatenate(parts))
    chosen, expected = RULES[name]

    def heard(results: list[dict]) -> list[tuple[str, float]]:
        return [(token["token"], token["start_s"]) for result in results for token in result["tokens"]]

    async def scenario():
        async with serving(model) as (server, url):
            assert server.info["defaults"] == {"chunk_ms": 480, "silence": 1200, "empty": 2400, "length": 20000}
            (whole,) = await finals(url, [data], **dict.fromkeys(chosen))
            messages = [message async for message in recognize(url, pieces_of(data), **chosen)]
            assert {**messages[1], **chosen} == messages[1], "ready"
            results = [message for message in messages if message["event"] == "final"]
            assert [result["endpoint"] for result in results] == expected
            assert heard(results) == heard([whole]) != []
            assert all(result["text"] == "" for result in results if result["endpoint"] == "empty")
            ends = [*(result["start_s"] for result in results[1:]), results[-1]["audio_s"]]
            for result, end in zip(results, ends, strict=True):
                assert all(result["start_s"] <= token["start_s"] < end for token in result["tokens"])

    async def pieces_of(audio: bytes) -> AsyncIterator[bytes]:
        for piece in pieces(audio):
            yield piece

    run(scenario())


def test_no_audio_at_all(model):
    async def scenario():
        async with serving(model) as (_, url):
            results = await finals(url, [])
            assert [(r["text"], r["audio_s"], r["tokens"]) for r in results] == [("", 0.0, [])]

    run(scenario())


def test_twenty_clients(model):
    """Each gets its own results, whatever its chunk length and the size of its messages."""
    clients = [(audio(3 + 0.2 * n, n), (160, 320, 480, 960)[n % 4], 2 * (200 + 777 * n)) for n in range(20)]

    async def scenario():
        async with serving(model, sessions_per_address=20) as (server, url):
            jobs = [
                finals(url, [data[i : i + size] for i in range(0, len(data), size)], chunk_ms=chunk_ms)
                for data, chunk_ms, size in clients
            ]
            return await asyncio.gather(*jobs)

    async def all_of_it():
        for results, (data, chunk_ms, _) in zip(await scenario(), clients, strict=True):
            same(results, alone(model, data, chunk_ms))

    run(all_of_it())
    assert len({json.dumps(alone(model, data)[0]["text"]) for data, _, _ in clients}) > 10, "they should differ"


def test_what_waits_is_computed_together_and_the_loop_goes_on(model, monkeypatch):
    sizes = []
    compute = rounds.decode

    def slow(streams):
        sizes.append(len(streams))
        time.sleep(0.4)
        return compute(streams)

    monkeypatch.setattr(rounds, "decode", slow)

    async def scenario():
        async with serving(model) as (_, url), aiohttp.ClientSession() as http:
            jobs = [asyncio.create_task(finals(url, [audio(0.3, n)])) for n in range(6)]
            await until(lambda: sizes)
            started = time.monotonic()
            async with http.get(url.replace("ws:", "http:").replace("/stream", "/info")) as response:
                assert (await response.json())["defaults"]["chunk_ms"] == 480
            assert time.monotonic() - started < 0.3
            await asyncio.gather(*jobs)
            assert max(sizes) >= 4

    run(scenario())


def test_a_failure_of_the_recognizer_ends_its_round_only(model, monkeypatch):
    compute = rounds.decode
    monkeypatch.setattr(rounds, "decode", lambda *arguments: 1 / 0)

    async def scenario():
        async with serving(model) as (server, url):
            replies, code = await answer(url, '{"event": "config"}', audio(0.1))
            assert (replies[-1]["code"], code) == ("internal", 1011)
            monkeypatch.setattr(rounds, "decode", compute)
            same(await finals(url, [audio(1)]), alone(model, audio(1)))
            assert not server.rounds.sessions

    run(scenario())


JUNK = {
    "no json": (["hello?"], "message"),
    "no object": (["[1]"], "message"),
    "another event": (['{"event": "end"}'], "message"),
    "deep": (["[" * 4000], "message"),
    "long": (['{"event": "config", "x": "' + "x" * 5000 + '"}'], "message"),
    "audio first": ([b"\0\0"], "message"),
    "unknown setting": (['{"event": "config", "chunk": 480}'], "config"),
    "chunk not offered": (['{"event": "config", "chunk_ms": 20}'], "config"),
    "chunk of another type": (['{"event": "config", "chunk_ms": "480"}'], "config"),
    "chunk unhashable": (['{"event": "config", "chunk_ms": [480]}'], "config"),
    "rule true": (['{"event": "config", "silence": true}'], "config"),
    "rule negative": (['{"event": "config", "empty": -1}'], "config"),
    "rule of a day": (['{"event": "config", "length": 86400000}'], "config"),
    "earlier rule": (['{"event": "config", "endpoint_ms": [1]}'], "config"),
    "half a sample": (['{"event": "config"}', b"\0\0\0"], "message"),
    "config twice": (['{"event": "config"}', '{"event": "config"}'], "message"),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_answered_in_one_line(model, name):
    messages, code = JUNK[name]

    async def scenario():
        async with serving(model) as (server, url):
            replies, closed = await answer(url, *messages)
            assert (replies[-1]["event"], replies[-1]["code"], closed) == ("error", code, 1008)
            assert "\n" not in replies[-1]["message"] and len(replies[-1]["message"]) < 200
            await until(lambda: not server.rounds.sessions and not server._sockets)

    run(scenario())


def test_bad_clients_disturb_nobody(model):
    """While one speaks in real time others vanish, send what is no websocket, 100 MB frames, and all they have."""
    data = audio(5)
    shown: list[float] = []

    async def speaker(url: str) -> list[dict]:
        started, results = time.monotonic(), []
        async for message in recognize(url, in_real_time(pieces(data))):
            if message["event"] == "partial":
                shown.append(time.monotonic() - started - message["audio_s"])
            elif message["event"] == "final":
                results.append(message)
        return results

    async def vandals(url: str) -> None:
        for round_ in range(4):
            for payload in (
                CONFIG + frame(2, audio(1)),  # and away
                os.urandom(5000),
                frame(1, b"\xff\xfe"),
                frame(3, b"no such opcode"),
                CONFIG + frame(2, bytes(100), length=1 << 62),
                CONFIG[:5],
            ):
                _, writer = await raw(url, payload)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(0.02)
                writer.transport.abort() if round_ % 2 else writer.close()

    async def big(url: str) -> None:
        before = memory_mb()
        reader, writer = await raw(url, CONFIG, frame(2, b"", length=100 << 20))
        block, most = bytes(1 << 20), before
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(block)
                await asyncio.wait_for(writer.drain(), 5)
                most = max(most, memory_mb())
            assert b"" == await reader.read(), "the connection should be closed"
        writer.close()
        assert most < before + 40

    async def flood(url: str) -> None:
        _, writer = await raw(url, CONFIG)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(3):
                while True:
                    writer.write(frame(2, bytes(1 << 16)))
                    await writer.drain()
        writer.transport.abort()

    async def scenario():
        async with serving(model, speed=8.0, idle_s=3.0) as (server, url):
            speaking = asyncio.create_task(speaker(url))
            await asyncio.gather(vandals(url), big(url), flood(url), flood(url))
            same(await speaking, alone(model, data))
            await until(lambda: not server.rounds.sessions and not server._sockets)

    run(scenario())
    assert len(shown) >= 10 and np.median(shown) < 1, shown


def test_a_client_too_fast_waits_and_loses_nothing(model):
    data = audio(40)

    async def scenario():
        async with serving(model, speed=20.0) as (server, url):
            most = 0

            async def watch():
                nonlocal most
                while True:
                    most = max([most, *(len(session.audio) for session in server.rounds.sessions)])
                    await asyncio.sleep(0.001)

            watching = asyncio.create_task(watch())
            started = time.monotonic()
            same(await finals(url, [data[i : i + 8000] for i in range(0, len(data), 8000)]), alone(model, data))
            assert time.monotonic() - started > (40 - server_module.BURST_S) / 20 - 0.2
            assert 0 < most <= WAITING_S * BYTES_PER_S + 8000
            watching.cancel()

    run(scenario())


def test_a_client_that_does_not_read_is_held_and_then_dropped(model, monkeypatch):
    monkeypatch.setattr(rounds, "WAITING_RESULTS", 5)
    compute = rounds.compute
    heavy = {"event": "partial", "text": "x" * 10**6}  # fills the socket's buffers soon
    monkeypatch.setattr(rounds, "compute", lambda shares: [[*replies, heavy] for replies in compute(shares)])

    async def scenario():
        async with serving(model, idle_s=1.0) as (server, url):
            reader, writer = await raw(url, CONFIG)
            reader._transport.pause_reading()

            async def send():
                while True:
                    writer.write(frame(2, audio(1)))
                    await writer.drain()

            sending = asyncio.create_task(send())
            await until(lambda: any(s.messages.qsize() >= 5 for s in server.rounds.sessions), 20)
            session = next(iter(server.rounds.sessions))
            await asyncio.sleep(0.3)
            assert session.messages.qsize() < 10
            assert len(session.audio) <= WAITING_S * BYTES_PER_S + len(audio(1))
            await until(lambda: not server.rounds.sessions and not server._sockets)
            sending.cancel()
            writer.transport.abort()

    assert WAITING_RESULTS > 5
    run(scenario())


def test_only_so_many_sessions(model):
    async def scenario():
        async with serving(model, sessions=2) as (server, url), aiohttp.ClientSession() as http:
            first, second = await http.ws_connect(url), await http.ws_connect(url)
            assert (await first.receive_json())["event"] == "hello" == (await second.receive_json())["event"]
            replies, code = await answer(url)
            assert ([m["code"] for m in replies], code) == (["full"], 1013)
            with pytest.raises(UserError, match="full"):
                await finals(url, [])
            await first.close()
            await until(lambda: len(server._sockets) == 1)
            same(await finals(url, [audio(1)]), alone(model, audio(1)))
            await second.close()

    run(scenario())


def test_idle_and_long_sessions_end(model):
    async def scenario():
        async with serving(model, idle_s=0.3, session_s=5.0) as (server, url):
            for messages in ([], ['{"event": "config"}'], ['{"event": "config"}', audio(1)]):
                replies, code = await answer(url, *messages)
                assert (replies[-1]["code"], code) == ("idle", 1008)
            replies, code = await answer(url, '{"event": "config"}', audio(4.9), audio(0.2))
            assert (replies[-1]["code"], code) == ("too_long", 1008)
            _, writer = await raw(url)  # pings do not keep a session
            for _ in range(10):
                writer.write(frame(9, b""))
                await asyncio.sleep(0.1)
            assert not server.rounds.sessions and not server._sockets
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("http://127.0.0.1:{port}", 101),
        ("https://captions.example.org", 101),
        ("http://127.0.0.1:1", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_sites_are_refused(model, origin, status):
    async def scenario():
        async with serving(model) as (server, url), aiohttp.ClientSession() as http:
            server.origins = frozenset({"https://captions.example.org"})
            headers = {"Origin": origin.format(port=url.split(":")[2].split("/")[0])} if origin else {}
            if status == 101:
                async with http.ws_connect(url, headers=headers) as socket:
                    assert (await socket.receive_json())["event"] == "hello"
                return
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(url, headers=headers)
            assert caught.value.status == status
            # a name that somebody lets point here
            headers = {"Origin": "http://evil.example:80", "Host": "evil.example:80"}
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(url, headers=headers)

    run(scenario())


def test_the_page_and_nothing_else(model):
    async def scenario():
        async with serving(model) as (_, url), aiohttp.ClientSession() as http:
            site = url.replace("ws:", "http:").removesuffix("stream")
            for name, kind in {
                "": "text/html",
                "app.js": "text/javascript",
                "capture.js": "text/javascript",
                "resample.js": "text/javascript",
                "words.js": "text/javascript",
                "style.css": "text/css",
            }.items():
                async with http.get(site + name) as response:
                    assert (response.status, response.content_type) == (200, kind)
                    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            for name in ("server.py", "..%2fserver.py", "%2e%2e/server.py", "page/"):
                async with http.get(site + name) as response:
                    assert response.status == 404

    run(scenario())


def test_a_model_that_does_not_stream_is_refused(model, tmp_path):
    (tmp_path / "config.yaml").write_text((model / "config.yaml").read_text().replace("chunk_conf", "no_chunk_conf"))
    (tmp_path / "model.pth").symlink_to(model / "model.pth")
    with pytest.raises(UserError, match="not a streaming student"):
        Server(tmp_path)
    with pytest.raises(UserError, match="chunk_ms"):
        Server(model, chunk_ms=50)
    with pytest.raises(UserError, match="empty: 99 ms is not within 100 to"):
        Server(model, rules=EndpointRules(empty=99))


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_an_export_is_served_in_batches(front_end):
    """Eight clients at once get what the recogniser gives each alone."""
    folder = export(front_end, hop=0.5)
    recogniser = OnnxRecognizer.from_pretrained(folder, rules=SHERPA_RULES)

    async def scenario():
        async with serving(folder) as (server, url):
            assert server.info["chunk_ms"] == [480] and server.info["token_type"] == "char"
            clients = [audio(2 + n / 4, n) for n in range(8)]
            for results, data in zip(
                await asyncio.gather(*(finals(url, pieces(data)) for data in clients)), clients, strict=True
            ):
                expected = recogniser.recognize(np.frombuffer(data, "<i2"))
                assert results[-1]["text"] == expected["text"] != ""

    run(scenario())


def test_what_does_not_fit_an_export_is_refused(model):
    with pytest.raises(UserError, match="exported models decode greedily"):
        Server(export("cnn"), decoding=DecodeConf("beam"))
    with pytest.raises(UserError, match="is not an export"):
        Server(model, int8=True)
    with pytest.raises(UserError, match="was exported for 480 ms"):
        Server(export("cnn"), chunk_ms=160)


def test_phrases_are_preferred(model, tmp_path):
    """With a bonus that no acoustic score outweighs, the phrase is found."""
    (tmp_path / "names.txt").write_text("bad cab\n")
    decoding = DecodeConf("beam", hotwords=tmp_path / "names.txt", hotword_boost=500)

    async def scenario():
        server = Server(model, limits=Limits(speed=FAST), decoding=decoding)
        async with listening(server, "127.0.0.1", 0) as addresses:
            url = f"ws://127.0.0.1:{addresses[0][1]}/stream"
            (final,) = await finals(url, [audio(2)], silence=10000)
            assert "bad cab" in final["text"]

    assert "bad cab" not in alone(model, audio(2))[0]["text"]
    run(scenario())
