"""Size, computation, speed and memory of wav2vec 2.0 and of all students at full size (random weights), as ratios.

    make bench

Networks are those of conf/students and wav2vec 2.0 Base and Large; speed does not depend on their weights. Each has a
process of its own, and they take turns, round by round: whole utterances of 15 s with full context, and for students
streams in chunks, once the history of 6 s is full; in torch, and in onnxruntime as distill.export.export writes them,
with huge pages. A teacher is measured with two of Hugging Face's attention implementations, and students are compared
with the faster one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from distill.audio import SAMPLE_RATE
from distill.bench.network_process import WHOLE_S, NetworkProcess, build
from distill.bench.parts import (
    CONFIG,
    STUDENTS,
    TEACHERS,
    TOKENS,
    benchmark_parser,
    machine,
    noise,
    random_student,
    student_conf,
    summarise,
    write_json,
)

LATENCIES = (160, 320, 480, 960)
EXPORTED_MS = 480
PROFILED = ("s5", "f")
WARM_UP_S = 7.0  # of audio, after which the history of a stream is full

Row = dict[str, Any]


def computation(system: str) -> dict[str, float]:
    """Parameters, and 10^9 multiply-adds per second of audio, as counted by torch and by the formulae of the plan."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from distill.plan import student_network, teacher_network

    network = build(system)
    audio = torch.from_numpy(noise(WHOLE_S))[None]
    more = {  # two CPU operators that the counter lacks, by the shapes of their arguments
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


def export(system: str, folder: Path) -> dict[str, Path]:
    """Export a student; its ONNX files, float32 and int8."""
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
    """Milliseconds and calls by operator of a step in onnxruntime, and milliseconds to read the weights once."""
    import onnxruntime

    from distill.export.recognizer import OnnxModel

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    model = OnnxModel(path)
    model.session = onnxruntime.InferenceSession(path, options)
    state, samples = model.first_state(), noise(model.samples / SAMPLE_RATE)
    for step in range(steps):
        model.step(samples, model.chunk, step * model.chunk, state)
    events = [
        e for e in json.loads(Path(model.session.end_profiling()).read_text()) if e["name"].endswith("_kernel_time")
    ]
    durations: dict[str, list[int]] = {}  # microseconds
    for event in events[len(events) // 6 :]:
        durations.setdefault(event["args"]["op_name"], []).append(event["dur"])
    counted = steps - steps // 6
    weights = np.ones(path.stat().st_size // 4, np.float32)
    started = time.perf_counter()
    for _ in range(10):
        weights.sum()
    return {
        "operators": {
            name: {"ms": sum(t) / counted / 1000, "calls": len(t) / counted} for name, t in durations.items()
        },
        "reading_ms": 100 * (time.perf_counter() - started),
    }


def requests(process: NetworkProcess, seconds: float) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """What is measured of a network: the fields of its row, and the request."""
    about = process.about
    if about["runtime"] != "torch":
        yield {**about, "latency_ms": EXPORTED_MS}, ("stream", EXPORTED_MS, seconds)
    elif about["system"] in TEACHERS:
        for attention in ("sdpa", "eager") if about["threads"] == 1 else ("sdpa",):
            yield {**about, "runtime": f"torch ({attention})", "latency_ms": None}, ("whole", attention)
    else:
        yield {**about, "latency_ms": None}, ("whole", None)
        for chunk_ms in LATENCIES if about["threads"] == 1 else (EXPORTED_MS,):
            yield {**about, "latency_ms": chunk_ms}, ("stream", chunk_ms, seconds)


def measure_in_turns(
    planned: list[tuple[NetworkProcess, tuple[Any, ...], Row]], rounds: int
) -> list[list[dict[str, float]]]:
    """Measurements of each planned request by round; all take turns within a round, and one round is for warming up."""
    from tqdm import tqdm

    measurements: list[list[dict[str, float]]] = [[] for _ in planned]
    for number in tqdm(range(rounds + 1), desc="rounds, the first to warm up", unit="round"):
        for index, (process, request, _) in enumerate(tqdm(planned, leave=False, unit="run", mininterval=1)):
            if number > 0:
                measurements[index].append(process(*request))
            elif request[0] == "stream":
                process(*request[:2], WARM_UP_S)
            else:
                process(*request)
    return measurements


def main() -> None:
    from tqdm import tqdm

    parser = benchmark_parser(__doc__)
    systems = (*TEACHERS, *STUDENTS)
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems, help="(default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.8, help="of audio for a stream in a round (default: 4.8)")
    args = parser.parse_args()
    sizes = {system: computation(system) for system in args.systems}
    profiles: dict[str, dict[str, Any]] = {system: {} for system in PROFILED if system in args.systems}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        planned: list[tuple[NetworkProcess, tuple[Any, ...], Row]] = []
        for system in tqdm(args.systems, desc="models", unit="model"):
            processes = [NetworkProcess(stack, system, "torch", threads) for threads in (1, 2)]
            sizes[system]["float32_bytes"] = 4 * sizes[system]["params"]
            if system in STUDENTS:
                for kind, path in export(system, Path(folder)).items():
                    sizes[system][f"onnx_{kind}_bytes"] = path.stat().st_size
                    runtime = f"onnxruntime {kind}"
                    processes += [NetworkProcess(stack, system, runtime, threads, str(path)) for threads in (1, 2)]
                    if system in profiles:
                        profiles[system][kind] = profile(path)
            planned += [
                (process, request, row) for process in processes for row, request in requests(process, args.seconds)
            ]
        measurements = measure_in_turns(planned, args.rounds)
    rows = [
        {**row, **{name: summarise([m[name] for m in measured]) for name in ("rtf", "cpu", "peak_mb")}}
        for (_, _, row), measured in zip(planned, measurements, strict=True)
    ]
    show(sizes, rows)
    write_json(args.output, {"machine": machine(), "sizes": sizes, "rows": rows, "profiles": profiles})


def show(sizes: dict[str, dict[str, float]], rows: list[dict[str, Any]]) -> None:
    """Print all figures."""
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
