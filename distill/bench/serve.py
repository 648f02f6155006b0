"""Delay of results when many clients send audio to a server on this machine at once, in real time over its websocket.

    make bench
    python -m distill.bench.serve --model exp/student_stream --data_dir dump/raw/test

The delay of a result runs from when the last audio in it was sent to its arrival: computation, waiting for other
clients, and the network. Without --model the server has a student of full size with random weights; without --data_dir
the audio is noise.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import torch
import yaml

from distill.audio import read_audio, read_wav_scp
from distill.bench.parts import CONFIG, noise, random_student, student_conf
from distill.serve.client import SAMPLE_RATE, in_real_time, pcm, pieces, recognize


def save_student(name: str, directory: Path) -> Path:
    """Save a student of conf/students with random weights as a training does, and return its directory."""
    config = {**CONFIG, "network": "student", "network_conf": student_conf(name)}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    weights = random_student(name).state_dict()
    torch.save({f"network.{key}": value for key, value in weights.items()}, directory / "model.pth")
    return directory


def client_audio(data_dir: Path | None, seconds: float, clients: int) -> list[bytes]:
    """16-bit PCM for every client: utterances one after another, each client from another one on."""
    if data_dir is None:
        return [pcm(noise(seconds, client)) for client in range(clients)]
    files = list(read_wav_scp(data_dir / "wav.scp").values())
    root = next(path for path in (Path(), *data_dir.resolve().parents) if (path / files[0]).exists())
    streams = []
    for client in range(clients):
        audio = np.zeros(0, np.float32)
        for number in range(len(files)):
            if len(audio) >= SAMPLE_RATE * seconds:
                break
            audio = np.concatenate((audio, read_audio(root / files[(17 * client + number) % len(files)])))
        streams.append(pcm(audio[: int(SAMPLE_RATE * seconds)]))
    return streams


async def send(url: str, audio: bytes, after: float, chunk_ms: int) -> tuple[list[float], float]:
    """Run a client that begins after ``after`` seconds: delays of its results, and of its end after its audio's."""
    await asyncio.sleep(after)
    delays, began = [], 0.0

    async def timed_pieces() -> AsyncIterator[bytes]:
        nonlocal began
        began = time.monotonic()
        async for piece in in_real_time(pieces(audio)):
            yield piece

    async for message in recognize(url, timed_pieces(), chunk_ms):
        if message["event"] in ("partial", "final"):
            delays.append(time.monotonic() - began - message["audio_s"])
    return delays, time.monotonic() - began - len(audio) / 2 / SAMPLE_RATE


async def measure(url: str, streams: list[bytes], chunk_ms: int) -> tuple[list[float], list[float]]:
    """Run all clients, which begin at random within a second: delays of all results, and of the clients' ends."""
    spread = np.random.default_rng(1).uniform(0, 1, len(streams))
    jobs = [send(url, audio, after, chunk_ms) for audio, after in zip(streams, spread, strict=True)]
    outcomes = await asyncio.gather(*jobs)
    return [delay for delays, _ in outcomes for delay in delays], [end for _, end in outcomes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a training (default: random weights)")
    parser.add_argument("--student", default="f", help="of conf/students, without --model (default: f)")
    parser.add_argument("--data_dir", type=Path, help="data directory with wav.scp (default: noise)")
    parser.add_argument("--int8", action="store_true", help="of an export given as --model")
    parser.add_argument("--chunk_ms", type=int, default=480, help="(default: 480)")
    parser.add_argument("--clients", type=int, default=20, help="(default: 20)")
    parser.add_argument("--seconds", type=float, default=15, help="of audio for each (default: 15)")
    args = parser.parse_args()
    streams = client_audio(args.data_dir, args.seconds, args.clients)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or save_student(args.student, Path(folder))
        command = [sys.executable, "-m", "distill.bin.serve", "--model", str(model), "--port", "0"]
        command += [
            "--sessions",
            str(args.clients),
            "--sessions_per_address",
            str(args.clients),
            "--chunk_ms",
            str(args.chunk_ms),
        ]
        command += ["--int8"] if args.int8 else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = re.search(r"http://(\S+)/", server.stdout.readline())
                if address is None:
                    sys.exit("error: the server did not start")
                process = psutil.Process(server.pid)
                before, started = process.cpu_times(), time.monotonic()
                delays, ends = asyncio.run(measure(f"ws://{address[1]}/stream", streams, args.chunk_ms))
                after, wall = process.cpu_times(), time.monotonic() - started
            finally:
                server.terminate()
    busy = after.user + after.system - before.user - before.system
    median, p99 = (1000 * float(np.percentile(delays, q)) for q in (50, 99))
    print(
        f"{model.name if args.model else args.student}, {args.clients} clients in real time, chunks of {args.chunk_ms} "
        f"ms: results {median:.0f} ms late (99th percentile {p99:.0f}, largest {1000 * max(delays):.0f}); the last "
        f"one ended {1000 * max(ends):.0f} ms after its audio; the server took {100 * busy / wall:.0f}% of a core"
    )


if __name__ == "__main__":
    main()
