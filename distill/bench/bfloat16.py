"""What bfloat16 gains in training on a CPU that multiplies in it: a step with CTC, gradients included, on one thread.

    make bench

The networks are the teacher and the student of conf/from_scratch/small; float32 and bfloat16 take turns.
"""

from __future__ import annotations

import datetime
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import yaml

from distill.audio import SAMPLE_RATE
from distill.bench.parts import ROOT, TOKENS, benchmark_parser, noise, summarise, warn_if_busy, write_json
from distill.checkpoints.device import multiplies_bfloat16
from distill.models.student import Student
from distill.models.teacher import Teacher

TRAININGS = ("teacher", "student_full")
PRECISIONS = ("float32", "bfloat16")
UTTERANCES, SECONDS = 5, 8.0  # of a step


def network(training: str) -> Teacher | Student:
    """The network of a training, with random weights."""
    conf = yaml.safe_load((ROOT / f"conf/from_scratch/small/train_{training}.yaml").read_text())["network_conf"]
    if training != "teacher":
        return Student(len(TOKENS), **conf).train()
    return Teacher(len(TOKENS), **conf).train()


def step(network: Teacher | Student, precision: str) -> float:
    """Seconds of forward and backward."""
    audio = torch.from_numpy(np.stack([noise(SECONDS, seed) for seed in range(UTTERANCES)]))  # (B, N)
    lengths = torch.full((UTTERANCES,), int(SECONDS * SAMPLE_RATE))  # (B,)
    text = torch.randint(1, len(TOKENS), (UTTERANCES, 100))  # (B, U)
    network.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
        output = network(audio, lengths)
    log_probs = output.logits.log_softmax(-1).transpose(0, 1)  # (T, B, V)
    text_lengths = torch.full((UTTERANCES,), text.shape[1])
    torch.nn.functional.ctc_loss(log_probs, text, output.lengths, text_lengths).backward()
    return time.perf_counter() - started


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="steps of each; the first is not counted (default: 9)")
    args = parser.parse_args()
    warn_if_busy()
    torch.set_num_threads(1)
    networks = {(name, kind): network(name) for name in TRAININGS for kind in PRECISIONS}
    seconds = [{key: step(net, key[1]) for key, net in networks.items()} for _ in range(args.rounds)][1:]
    rows: list[dict[str, Any]] = [
        {"training": name, **{kind: summarise([measured[name, kind] for measured in seconds]) for kind in PRECISIONS}}
        for name in TRAININGS
    ]
    for row in rows:
        float32, bfloat16 = (row[kind]["median"] for kind in PRECISIONS)
        print(
            f"{row['training']}: {float32:.2f} s in float32, {bfloat16:.2f} s in bfloat16 ({float32 / bfloat16:.2f}x)"
        )
    report = {
        "audio_s": UTTERANCES * SECONDS,
        "native": multiplies_bfloat16(),
        "date": f"{datetime.date.today():%d %B %Y}",
        "rows": rows,
    }
    write_json(args.output, report)


if __name__ == "__main__":
    main()
