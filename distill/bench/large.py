"""wav2vec 2.0 Large in torch and in onnxruntime beside students in onnxruntime (random weights), on one thread.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m distill.bench.large

Large computes 15 s at once, students stream at 480 ms with a full history. All are in one process and take turns; the
least processor time of each counts. It takes 6 GB of memory.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.bench.int4 import CHUNK_MS, WARM_UP
from distill.bench.network_process import WHOLE_S, build
from distill.bench.parts import benchmark_parser, machine, noise, write_json
from distill.bench.teacher_and_students import export
from distill.export.recognizer import LogProbStream, OnnxModel, open_session

STEPS = 40  # of a student in a round
TOLERANCE = 1e-3  # of logits


def export_large(path: Path) -> None:
    """Write Large's ONNX model; in a process of its own, whose memory is then free."""
    from distill.export.teacher import save_teacher
    from distill.models.teacher import Teacher

    large = build("large")
    assert isinstance(large, Teacher)
    save_teacher(large, int(WHOLE_S * 16000), path)


def processor_time(compute: Callable[[], Any], repetitions: int = 1) -> float:
    """Least seconds of processor time."""
    least = float("inf")
    for _ in range(repetitions):
        began = time.process_time()
        compute()
        least = min(least, time.process_time() - began)
    return least


def student_stream(path: Path, steps: int) -> LogProbStream:
    """A stream of an exported student with a full history, and audio for so many steps."""
    stream = OnnxModel(path).new_stream()
    stream.receive(noise((WARM_UP + steps + 1) * CHUNK_MS / 1000))
    for _ in range(WARM_UP):
        stream.compute()
    return stream


def main() -> None:
    import torch

    parser = benchmark_parser(__doc__)
    parser.add_argument("--students", nargs="+", default=["s5", "f"], help="names in conf/students (default: s5 f)")
    parser.add_argument("--rounds", type=int, default=4, help="(default: 4)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    speech = noise(WHOLE_S)[None]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder, "large.onnx")
        process = multiprocessing.get_context("spawn").Process(target=export_large, args=(path,))
        process.start()
        process.join()
        session, megabytes = open_session(path), os.path.getsize(path) / 1e6
        path.unlink()
        large, audio = build("large"), torch.from_numpy(speech)
        whole: dict[str, Callable[[], Any]] = {
            "torch": lambda: large(audio, torch.tensor([audio.shape[1]])).logits,
            "onnxruntime": lambda: session.run(None, {"speech": speech})[0],
        }
        difference = float(np.abs(whole["torch"]().numpy() - whole["onnxruntime"]()).max())
        assert difference <= TOLERANCE, f"logits differ by {difference}"
        files = {(name, kind): file for name in args.students for kind, file in export(name, Path(folder)).items()}
        streams = {key: student_stream(file, STEPS * args.rounds) for key, file in files.items()}
        rows: list[dict[str, Any]] = [
            {"network": "large", "runtime": runtime, "mb": megabytes, "rtf": float("inf")} for runtime in whole
        ]
        rows += [
            {"network": name, "runtime": f"onnxruntime {kind}", "mb": os.path.getsize(file) / 1e6, "rtf": float("inf")}
            for (name, kind), file in files.items()
        ]
        for number in range(args.rounds):
            found = [processor_time(compute) / WHOLE_S for compute in whole.values()]
            found += [1000 * processor_time(stream.compute, STEPS) / CHUNK_MS for stream in streams.values()]
            for row, rtf in zip(rows, found, strict=True):
                row["rtf"] = min(row["rtf"], rtf)
            print(f"round {number + 1}: {', '.join(f'{rtf:.4f}' for rtf in found)}", flush=True)
    for row in rows:
        print(f"{row['network']:6} {row['runtime']:20} {row['mb']:7.1f} MB, {row['rtf']:.4f} of real time", flush=True)
    about = {"date": f"{datetime.date.today():%d %B %Y}", "processor": machine()["processor"]}
    write_json(args.output, {**about, "difference": difference, "rows": rows})


if __name__ == "__main__":
    main()
