"""A network of full size (random weights) in a process of its own, and what its computation takes there.

:class:`NetworkProcess` starts this module as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from distill.audio import SAMPLE_RATE
from distill.bench.parts import CONFIG, LAYER_NORM, TEACHERS, TOKENS, noise, peak_mb, random_student, reset_peak

if TYPE_CHECKING:
    from torch import nn

WHOLE_S = 15.0  # of audio computed at once
LEAST_S = 1.0  # of computation in a measurement; a faster one is repeated, as its first chunks find cold caches
# Memory in pages of 2 MB, for weights that are read from end to end with every chunk. Networks in torch do not gain
# from it, so they go without.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TEACHER_CONF = {"base": TEACHERS["base"], "large": {**TEACHERS["large"], **LAYER_NORM}}


def build(system: str) -> nn.Module:
    """Build a network with random weights, in evaluation mode."""
    if system not in TEACHERS:
        return random_student(system)
    import torch

    from distill.models.teacher import Teacher

    torch.manual_seed(0)
    return Teacher(len(TOKENS), TEACHER_CONF[system]).eval()


class TorchNetwork:
    """A network in torch."""

    def __init__(self, system: str) -> None:
        self.network = build(system)
        self.streams: dict[int, Any] = {}

    def whole(self, attention: str | None) -> float:
        """Compute 15 s of audio at once, with one of Hugging Face's attention implementations; seconds of audio."""
        import torch

        if attention is not None:
            self.network.encoder.set_attn_implementation(attention)  # type: ignore[union-attr, operator]
        audio = torch.from_numpy(noise(WHOLE_S))[None]
        with torch.inference_mode():
            self.network(audio, torch.tensor([audio.shape[1]]))
        return WHOLE_S

    def stream(self, chunk_ms: int, seconds: float) -> float:
        """Feed a stream, which goes on with each call; seconds of audio."""
        from distill.streaming import Recognizer

        if chunk_ms not in self.streams:
            self.streams[chunk_ms] = Recognizer(self.network, TOKENS, CONFIG, chunk_ms).create_stream()  # type: ignore[arg-type]
        return feed(self.streams[chunk_ms], chunk_ms, seconds)


class ExportedModel:
    """An exported model in onnxruntime."""

    def __init__(self, path: str, threads: int) -> None:
        from distill.export.recognizer import OnnxModel, Recognizer

        self._stream = Recognizer(OnnxModel(path, threads)).create_stream()

    def stream(self, chunk_ms: int, seconds: float) -> float:
        """Feed the stream, which goes on with each call; seconds of audio."""
        return feed(self._stream, chunk_ms, seconds)


def feed(stream: Any, chunk_ms: int, seconds: float) -> float:
    """Feed whole chunks of noise, at least ``seconds``; seconds of audio."""
    piece = chunk_ms * SAMPLE_RATE // 1000
    count = int(-(-seconds * SAMPLE_RATE // piece))
    audio = noise(count * chunk_ms / 1000)
    for start in range(0, len(audio), piece):
        stream.accept(audio[start : start + piece])
        stream.decode()
    return count * chunk_ms / 1000


def serve_requests(system: str, runtime: str, threads: int, path: str) -> None:
    """Run the process of one network: a request a line on stdin, its measurement a line on stdout, both in JSON.

    A request is the name of a method of :class:`TorchNetwork` or :class:`ExportedModel`, and its arguments.
    """
    if runtime == "torch":
        import torch

        torch.set_num_threads(threads)
        network: TorchNetwork | ExportedModel = TorchNetwork(system)
    else:
        network = ExportedModel(path, threads)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        reset_peak()
        started, cpu, audio_s = time.perf_counter(), time.process_time(), 0.0
        while not audio_s or time.perf_counter() - started < LEAST_S:
            audio_s += getattr(network, name)(*arguments)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(json.dumps({"rtf": wall / audio_s, "cpu": cpu / audio_s, "peak_mb": peak_mb()}), flush=True)


class NetworkProcess:
    """A network in a process of its own; called with a request, it returns the measurement."""

    def __init__(self, stack: ExitStack, system: str, runtime: str, threads: int, path: str = "") -> None:
        command = [sys.executable, "-m", "distill.bench.network_process", system, runtime, str(threads), path]
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
            sys.exit(f"error: the process of {self.about} failed")
        return json.loads(answer)


if __name__ == "__main__":
    serve_requests(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
