#!/usr/bin/env python
"""Size, computation, speed and memory of wav2vec 2.0 and of all students at full size (random weights), as ratios.

    make bench

Networks are built as conf/students and wav2vec 2.0 Base and Large define them; speed does not depend on their weights.
Each works in a process of its own, one at a time, and they take turns, round by round: whole utterances of 15 s with
full context, and for students streams in chunks, from when the history of 6 s is full; in torch, and in onnxruntime as
distill.export.export writes them, with huge pages. A teacher is tried with both of Hugging Face's ways to compute
attention, and students are compared with the faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.bench.parts import (
    CONFIG,
    LAYER_NORM,
    RATE,
    STUDENTS,
    TEACHERS,
    TOKENS,
    forget_peak,
    machine,
    middle,
    noise,
    peak_mb,
    random_student,
    student_conf,
)
from distill.files import atomic_write

if TYPE_CHECKING:
    from torch import nn

LATENCIES = (160, 320, 480, 960)
EXPORTED_MS = 480
PROFILED = ("s5", "f")
WHOLE_S = 15.0
# Of computation: what is quicker is repeated, as its first chunks find the caches full of the network before.
LEAST_S = 1.0
# Memory in pages of 2 MB, for weights that are read from end to end with every chunk. It does nothing for networks in
# torch, so those go without.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TEACHER_CONF = {"base": TEACHERS["base"], "large": {**TEACHERS["large"], **LAYER_NORM}}


def build(system: str) -> nn.Module:
    """A network in evaluation mode."""
    if system not in TEACHERS:
        return random_student(system)
    import torch

    from distill.models.teacher import Teacher

    torch.manual_seed(0)
    return Teacher(len(TOKENS), TEACHER_CONF[system]).eval()


def computation(system: str) -> dict[str, float]:
    """Parameters, and 10^9 multiply-adds per second of audio: counted by torch, and by the formulae of the plan."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from distill.plan import student_network, teacher_network

    network = build(system)
    audio = torch.from_numpy(noise(WHOLE_S))[None]
    more = {  # two operators of the CPU that the counter does not know, by the shapes of their arguments
        torch.ops.aten.addmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * b[1],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **rest: sdpa_flop_count(
            q, k, v
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter, torch.no_grad():
        network(audio, torch.tensor([audio.shape[1]]))
    if system in TEACHERS:
        formula = teacher_network(network.config.to_dict(), WHOLE_S)  # type: ignore[union-attr, operator]
    else:
        formula = student_network(student_conf(system), WHOLE_S)
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "gmacs": counter.get_total_flops() / 2 / WHOLE_S / 1e9,
        "formula_gmacs": formula.macs / 1e9,
    }


class Torch:
    """Measures one network in torch."""

    def __init__(self, system: str) -> None:
        self.network = build(system)
        self.sessions: dict[int, Any] = {}

    def whole(self, attention: str | None) -> float:
        """Seconds of audio, computed at once."""
        import torch

        if attention is not None:
            self.network.encoder.set_attn_implementation(attention)  # type: ignore[union-attr, operator]
        audio = torch.from_numpy(noise(WHOLE_S))[None]
        with torch.inference_mode():
            self.network(audio, torch.tensor([audio.shape[1]]))
        return WHOLE_S

    def stream(self, chunk_ms: int, seconds: float) -> float:
        """Seconds of audio that a session took in, which goes on with each call."""
        from distill.streaming import StreamingRecognizer

        if chunk_ms not in self.sessions:
            self.sessions[chunk_ms] = StreamingRecognizer(self.network, TOKENS, CONFIG, chunk_ms)  # type: ignore[arg-type]
        return feed(self.sessions[chunk_ms], chunk_ms, seconds)


class Onnx:
    """Measures one exported model."""

    def __init__(self, path: str, threads: int) -> None:
        from distill.export.recognizer import OnnxModel, OnnxRecognizer

        self.session = OnnxRecognizer(OnnxModel(path, threads))

    def stream(self, chunk_ms: int, seconds: float) -> float:
        """Seconds of audio that the session took in."""
        return feed(self.session, chunk_ms, seconds)


def feed(session: Any, chunk_ms: int, seconds: float) -> float:
    """Whole chunks of noise, at least ``seconds`` of it."""
    piece = chunk_ms * RATE // 1000
    count = int(-(-seconds * RATE // piece))
    audio = noise(count * chunk_ms / 1000)
    for start in range(0, len(audio), piece):
        session.accept_waveform(audio[start : start + piece])
    return count * chunk_ms / 1000


def work(system: str, runtime: str, threads: int, path: str) -> None:
    """The process of one network: a request a line on stdin, a measurement a line on stdout."""
    if runtime == "torch":
        import torch

        torch.set_num_threads(threads)
        subject: Any = Torch(system)
    else:
        subject = Onnx(path, threads)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        forget_peak()
        started, cpu, audio_s = time.perf_counter(), time.process_time(), 0.0
        while not audio_s or time.perf_counter() - started < LEAST_S:
            audio_s += getattr(subject, name)(*arguments)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(json.dumps({"rtf": wall / audio_s, "cpu": cpu / audio_s, "peak_mb": peak_mb()}), flush=True)


class Worker:
    """The other end of :func:`work`."""

    def __init__(self, stack: ExitStack, system: str, runtime: str, threads: int, path: str = "") -> None:
        command = [sys.executable, __file__, "--work", system, runtime, str(threads), path]
        env = os.environ | (HUGE_PAGES if runtime.startswith("onnx") else {})
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        )
        stack.callback(self.process.terminate)
        self.about = {"system": system, "runtime": runtime, "threads": threads}

    def __call__(self, *request: Any) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"error: the process of {self.about} ended")
        return json.loads(answer)


def export(system: str, folder: Path) -> dict[str, Path]:
    """ONNX files of a student, float32 and int8."""
    from distill.export import model as onnx_model

    network = random_student(system)
    shapes = onnx_model.shapes_for(network, CONFIG, EXPORTED_MS, system)
    properties = onnx_model.metadata(network, shapes, TOKENS, "word", EXPORTED_MS)
    step = onnx_model.step_model(network, shapes)
    files = {}
    for kind, model in (("float32", step), ("int8", onnx_model.quantized(step))):
        files[kind] = folder / f"{system}.{kind}.onnx"
        onnx_model.save(model, files[kind], properties)
    return files


def profile(path: Path, steps: int = 60) -> dict[str, Any]:
    """Where onnxruntime spends a step: milliseconds by operator, calls; and what reading the weights alone takes."""
    import onnxruntime

    from distill.export.recognizer import OnnxModel

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    model = OnnxModel(path)
    model.session = onnxruntime.InferenceSession(path, options)
    state, samples = model.first_state(), noise(model.samples / RATE)
    for step in range(steps):
        model.step(samples, model.chunk, step * model.chunk, state)
    events = [
        e for e in json.loads(Path(model.session.end_profiling()).read_text()) if e["name"].endswith("_kernel_time")
    ]
    took: dict[str, list[int]] = {}
    for event in events[len(events) // 6 :]:
        took.setdefault(event["args"]["op_name"], []).append(event["dur"])
    counted = steps - steps // 6
    weights = np.ones(path.stat().st_size // 4, np.float32)
    started = time.perf_counter()
    for _ in range(10):
        weights.sum()
    return {
        "operators": {name: {"ms": sum(t) / counted / 1000, "calls": len(t) / counted} for name, t in took.items()},
        "reading_ms": 100 * (time.perf_counter() - started),
    }


def tasks(worker: Worker, seconds: float) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """What is measured of a network: a name for it, and the request."""
    about = worker.about
    if about["runtime"] != "torch":
        yield {**about, "latency_ms": EXPORTED_MS}, ("stream", EXPORTED_MS, seconds)
    elif about["system"] in TEACHERS:
        for attention in ("sdpa", "eager") if about["threads"] == 1 else ("sdpa",):
            yield {**about, "runtime": f"torch ({attention})", "latency_ms": None}, ("whole", attention)
    else:
        yield {**about, "latency_ms": None}, ("whole", None)
        for chunk_ms in LATENCIES if about["threads"] == 1 else (EXPORTED_MS,):
            yield {**about, "latency_ms": chunk_ms}, ("stream", chunk_ms, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    systems = (*TEACHERS, *STUDENTS)
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems, help="(default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.8, help="of audio for a stream in a round (default: 4.8)")
    parser.add_argument("--output", type=Path, help="write the figures here as well, as JSON")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], args.work[1], int(args.work[2]), args.work[3])
        return
    from tqdm import tqdm

    sizes = {system: computation(system) for system in args.systems}
    profiles: dict[str, dict[str, Any]] = {system: {} for system in PROFILED if system in args.systems}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        planned: list[tuple[Worker, tuple[Any, ...], dict[str, Any]]] = []
        for system in tqdm(args.systems, desc="models", unit="model"):
            workers = [Worker(stack, system, "torch", threads) for threads in (1, 2)]
            sizes[system]["float32_bytes"] = 4 * sizes[system]["params"]
            if system in STUDENTS:
                for kind, path in export(system, Path(folder)).items():
                    sizes[system][f"onnx_{kind}_bytes"] = path.stat().st_size
                    runtime = f"onnxruntime {kind}"
                    workers += [Worker(stack, system, runtime, threads, str(path)) for threads in (1, 2)]
                    if system in profiles:
                        profiles[system][kind] = profile(path)
            planned += [(worker, request, row) for worker in workers for row, request in tasks(worker, args.seconds)]
        rounds: list[list[dict[str, float]]] = [[] for _ in planned]
        for number in tqdm(range(args.rounds + 1), desc="rounds, the first to warm up", unit="round"):
            for place, (worker, request, _) in enumerate(tqdm(planned, leave=False, unit="run", mininterval=1)):
                warm = number > 0
                if not warm and request[0] == "stream":
                    request = (*request[:2], 7.0)  # until the history is full
                measured = worker(*request)
                if warm:
                    rounds[place].append(measured)
    for (_, _, row), measured in zip(planned, rounds, strict=True):
        figures = {name: middle([m[name] for m in measured]) for name in ("rtf", "cpu", "peak_mb")}
        rows.append({**row, **figures})
    show(sizes, rows)
    if args.output is not None:
        with atomic_write(args.output) as stream:
            json.dump({"machine": machine(), "sizes": sizes, "rows": rows, "profiles": profiles}, stream, indent=1)


def show(sizes: dict[str, dict[str, float]], rows: list[dict[str, Any]]) -> None:
    """All figures for a terminal."""
    for system, size in sizes.items():
        print(f"{system}: {size['params'] / 1e6:.1f} M parameters, {size['gmacs']:.2f} GMAC per second of audio")
    print(
        f"{'system':6} {'latency':>7} {'runtime':20} {'threads':>7} {'RTF':>8} {'least':>8} {'most':>8} {'CPU':>8} MB"
    )
    for row in rows:
        rtf, latency = row["rtf"], "full" if row["latency_ms"] is None else f"{row['latency_ms']} ms"
        print(
            f"{row['system']:6} {latency:>7} {row['runtime']:20} {row['threads']:7} {rtf['median']:8.4f} "
            f"{rtf['least']:8.4f} {rtf['largest']:8.4f} {row['cpu']['median']:8.4f} {row['peak_mb']['median']:.0f}"
        )


if __name__ == "__main__":
    main()
