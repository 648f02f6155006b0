"""Attacks on a server with a student of full size, while a client that behaves measures how late its results are.

    PYTHONPATH=. python test/faults/hostile_server.py empty_frames --seconds 20 --attacker 127.0.0.2

Each attack is a process of its own that keeps up to 1,000 connections busy and opens another one for each that the
server ends. Held to: the client's delay (99th percentile) at most 100 ms above that of a quiet server, 100 MB of
memory, 1 MB on stderr. The attacker takes a core of the same machine, so beside the quiet server a process does too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 1000
DELAY_MS, MEMORY_MB, STDERR_MB = 100, 100, 1  # at most, above those of a quiet server
CHUNK_MS = 480
HANDSHAKE = (
    "GET /stream HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: int, payload: bytes = b"", final: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2, "big")
    return bytes([0x80 * final | opcode]) + length + bytes(4) + payload


CONTINUATION, TEXT, BINARY, PING, PONG = 0, 1, 2, 9, 10
CONFIG = frame(TEXT, b'{"event": "config"}')


class Stream(NamedTuple):
    """A connection of an attacker."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: str

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def shake_hands(self, *frames: bytes) -> None:
        await self.send(HANDSHAKE.format(host=self.host).encode())
        await self.reader.readuntil(b"\r\n\r\n")
        await self.send(b"".join(frames))

    async def read_all(self) -> None:
        while await self.reader.read(1 << 16):
            pass

    async def flood(self, data: bytes) -> None:
        """Send the same bytes until the server ends the connection, and read what it answers."""
        reading = asyncio.create_task(self.read_all())
        try:
            while not reading.done():
                await self.send(data)
        finally:
            reading.cancel()


async def silent(stream: Stream) -> None:
    """A connection and nothing more."""
    await stream.read_all()


async def half_open(stream: Stream) -> None:
    """A request that never ends."""
    await stream.send(HANDSHAKE.format(host=stream.host).encode()[:-2])
    await stream.read_all()


async def slow_request(stream: Stream) -> None:
    """A request that comes byte by byte."""
    for byte in HANDSHAKE.format(host=stream.host).encode():
        await stream.send(bytes([byte]))
        await asyncio.sleep(1)


async def frames(stream: Stream, data: bytes, first: bytes = b"") -> None:
    """A session that sends frames as fast as they are taken."""
    await stream.shake_hands(CONFIG, first)
    await stream.flood(data * 1000)


async def slow_reading(stream: Stream) -> None:
    """A session that sends audio and reads none of its results."""
    await stream.shake_hands(CONFIG)
    while True:
        await stream.send(frame(BINARY, os.urandom(32000)))


async def churn(stream: Stream) -> None:
    """A session that begins and is gone."""
    await stream.shake_hands(CONFIG, frame(BINARY, bytes(6400)))


async def requests(stream: Stream) -> None:
    """Many requests for the page in one connection."""
    await stream.flood(f"GET /app.js HTTP/1.1\r\nHost: {stream.host}\r\n\r\n".encode() * 100)


async def malformed(stream: Stream) -> None:
    """What is no request, or one with a malformed Origin or Host."""
    lines = (
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        f"GET /stream HTTP/1.1\r\nHost: {stream.host}\r\nOrigin: http://[\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\nHost: [\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    )
    await stream.send(lines[os.urandom(1)[0] % len(lines)])
    await stream.read_all()


ATTACKS: dict[str, Callable[[Stream], Awaitable[None]]] = {
    "silent": silent,
    "half_open": half_open,
    "slow_request": slow_request,
    "empty_frames": partial(frames, data=frame(BINARY)),
    "one_sample": partial(frames, data=frame(BINARY, bytes(2))),
    "pings": partial(frames, data=frame(PING)),
    "pongs": partial(frames, data=frame(PONG)),
    "fragments": partial(frames, data=frame(CONTINUATION, final=False), first=frame(BINARY, b"ab", final=False)),
    "audio": partial(frames, data=frame(BINARY, bytes(640))),
    "slow_reading": slow_reading,
    "churn": churn,
    "requests": requests,
    "malformed": malformed,
}


async def attack(name: str, host: str, source: str, connections: int) -> None:
    """Keep connections busy with an attack until this process is ended."""

    async def one() -> None:
        address, port = host.rsplit(":", 1)
        while True:
            writer = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(address, int(port), local_addr=(source, 0))
                await ATTACKS[name](Stream(reader, writer, host))
            if writer is not None:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one() for _ in range(connections)))


class Measured(NamedTuple):
    """A client's delays in ms, the server's memory in MB, its output on stderr in MB, and cores that it used."""

    p50: float
    p99: float
    worst: float
    memory: float
    stderr: float
    cores: float

    def __str__(self) -> str:
        return (
            f"results {self.p50:.0f} ms late (99th percentile {self.p99:.0f}, largest {self.worst:.0f}), "
            f"{self.memory:.0f} MB of memory, {self.stderr:.2f} MB on stderr, {self.cores:.2f} cores"
        )


@contextlib.contextmanager
def attacking(name: str | None, host: str, source: str, connections: int) -> Iterator[None]:
    """A process that attacks, or one that is only as busy."""
    if name is None:
        command = [sys.executable, "-c", "while True: pass"]
    else:
        command = [sys.executable, __file__, name, "--host", host, "--attacker", source]
        command += ["--connections", str(connections)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Served(NamedTuple):
    """A running server: HOST:PORT, its process, its stderr."""

    host: str
    process: psutil.Process
    stderr: Path


@contextlib.contextmanager
def serving(folder: Path, student: str = "f") -> Iterator[Served]:
    """A server of a student of conf/students with random weights."""
    from distill.bench.serve import save_student

    command = [sys.executable, "-m", "distill.bin.serve", "--model", str(save_student(student, folder)), "--port", "0"]
    with open(folder / "stderr", "wb") as stderr:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        try:
            assert process.stdout is not None
            address = re.search(r"http://(\S+)/", process.stdout.readline())
            assert address is not None, (folder / "stderr").read_text()
            yield Served(address[1], psutil.Process(process.pid), folder / "stderr")
        finally:
            process.terminate()
            process.wait(20)


def measure(server: Served, seconds: float, name: str | None, source: str, connections: int) -> Measured:
    """Measure a client in real time; under attack, it begins a second before the attack."""
    from distill.bench.parts import noise
    from distill.bench.serve import send
    from distill.serve.client import pcm

    memory = 0.0

    async def watch() -> None:
        nonlocal memory
        while True:
            memory = max(memory, server.process.memory_info().rss / 1e6)
            await asyncio.sleep(0.1)

    async def client() -> list[float]:
        watching = asyncio.create_task(watch())
        with contextlib.ExitStack() as stack:
            speaking = asyncio.create_task(send(f"ws://{server.host}/stream", pcm(noise(seconds, 0)), 0, CHUNK_MS))
            await asyncio.sleep(1)
            stack.enter_context(attacking(name, server.host, source, connections))
            delays, _ = await speaking
        watching.cancel()
        return delays

    before, started, used = server.stderr.stat().st_size, time.monotonic(), sum(server.process.cpu_times()[:2])
    try:
        delays = 1000 * np.array(asyncio.run(asyncio.wait_for(client(), seconds + 20)))
    except TimeoutError:
        delays = np.array([np.inf])
    p50, p99 = (float(np.percentile(delays, q)) for q in (50, 99))
    stderr = (server.stderr.stat().st_size - before) / 1e6
    cores = (sum(server.process.cpu_times()[:2]) - used) / (time.monotonic() - started)
    return Measured(p50, p99, float(delays.max()), memory, stderr, cores)


def compare(name: str, seconds: float, source: str, connections: int = CONNECTIONS) -> list[str]:
    """Run an attack on a new server, print the measurements, and return the limits that were exceeded."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        quiet = measure(server, seconds, None, source, connections)
        print(f"  quiet: {quiet}", flush=True)
        attacked = measure(server, seconds, name, source, connections)
        print(f"  {name} from {source}: {attacked}", flush=True)
    problems = []
    if attacked.p99 > quiet.p99 + DELAY_MS:
        problems.append(f"{name}: results {attacked.p99 - quiet.p99:.0f} ms later")
    if attacked.memory > quiet.memory + MEMORY_MB:
        problems.append(f"{name}: {attacked.memory - quiet.memory:.0f} MB more memory")
    if attacked.stderr > STDERR_MB:
        problems.append(f"{name}: {attacked.stderr:.0f} MB on stderr")
    return problems


def section(name: str, seconds: float) -> list[str]:
    """One attack, from another address than the client's; see :func:`compare`."""
    return compare(name, max(5.0, seconds / 2 - 4), "127.0.0.2")  # twice, and the start of a server


SECTIONS: dict[str, Callable[[float], list[str]]] = {f"server_{name}": partial(section, name) for name in ATTACKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--seconds", type=float, default=15, help="of the attack (default: 15)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help=f"(default: {CONNECTIONS})")
    parser.add_argument("--attacker", default="127.0.0.2", help="address of the attacker (default: 127.0.0.2)")
    parser.add_argument("--host", help="HOST:PORT of a server that runs; nothing is measured, and the attack goes on")
    args = parser.parse_args()
    if args.host:
        asyncio.run(attack(args.attack, args.host, args.attacker, args.connections))
    if problems := compare(args.attack, args.seconds, args.attacker, args.connections):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
