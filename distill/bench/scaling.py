"""What a second process gains in training: steps of a student of full size with CTC, gradients averaged over gloo.

    make bench

One process on one thread, one on two threads, and two on one thread each take turns. Every process has 30 s of audio in
a step, so that two processes train on twice as much.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import torch

from distill.audio import SAMPLE_RATE
from distill.bench.parts import TOKENS, benchmark_parser, noise, random_student, summarise, write_json

SETTINGS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
UTTERANCES, SECONDS = 4, 7.5


def work(student: str, steps: int) -> None:
    """Train in one process; the first of them prints the seconds of each step as a line of JSON."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    network: torch.nn.Module = random_student(student).train()
    if processes > 1:
        torch.distributed.init_process_group("gloo")
        network = torch.nn.parallel.DistributedDataParallel(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    rng = np.random.default_rng(rank)
    audio = torch.from_numpy(np.stack([noise(SECONDS, UTTERANCES * rank + n) for n in range(UTTERANCES)]))
    lengths = torch.full((UTTERANCES,), int(SECONDS * SAMPLE_RATE))
    text = torch.from_numpy(rng.integers(1, len(TOKENS), (UTTERANCES, 40)))
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        output = network(audio, lengths)
        log_probs = output.logits.log_softmax(-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(log_probs, text, output.lengths, torch.full((UTTERANCES,), text.shape[1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter() - started)
    if rank == 0:
        print(json.dumps(times[1:]))
    if processes > 1:
        torch.distributed.destroy_process_group()


def run(student: str, processes: int, threads: int, steps: int) -> list[float]:
    """Seconds of each step in one setting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "distill.bench.scaling", "--student", student, "--work", str(steps)]
    workers = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit(f"error: one of {processes} processes failed")
    return json.loads(outputs[0])


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--student", default="f", help="a name in conf/students (default: f)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--steps", type=int, default=3, help="in a round (default: 3)")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.student, args.work)
        return
    times: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(args.rounds):
        for setting, seconds in times.items():
            seconds += run(args.student, *setting, args.steps)
    rows = []
    base = UTTERANCES * SECONDS / np.median(times[1, 1])  # seconds of audio per second
    for (processes, threads), seconds in times.items():
        audio_s = processes * UTTERANCES * SECONDS
        gain = float(audio_s / np.median(seconds) / base)
        row = {"processes": processes, "threads": threads, "audio_s": audio_s, "seconds": summarise(seconds)}
        rows.append({**row, "gain": gain})
        print(
            f"{args.student}: {processes} x {threads} threads: a step of {audio_s:.0f} s of audio in "
            f"{np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {gain:.2f} times as fast as 1 x 1"
        )
    write_json(args.output, {"student": args.student, "rows": rows})


if __name__ == "__main__":
    main()
