"""Estimate what a recipe's run will cost before it is started: disk, GPU-hours and CPU-hours of each stage.

    python -m distill.bin.plan --corpus "LibriSpeech, 960 h" --hours 960.9 --utterances 281241 --test_hours 21.2 \\
        --teacher_config conf/train_teacher.yaml --student_full_config conf/train_student_full.yaml \\
        --student_stream_config conf/train_student_stream.yaml

Nothing is measured: every number follows from the corpus's size, the configurations and the assumptions that are
printed with it, each of them an option. `--dry_run true` of a recipe prints the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.plan import print_plan

DTYPES = ("float32", "float16", "compressed", "codebook")


def plan_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("--corpus", default="the corpus", help="its name, for the title")
    parser.add_argument("--hours", type=float, help="of training audio (default: of --utt2num_samples)")
    parser.add_argument("--utt2num_samples", type=Path, help="Kaldi table of samples, for --hours and --utterances")
    parser.add_argument("--utterances", type=int, help="of the training set (default: one for 10 s)")
    parser.add_argument("--test_hours", type=float, help="of all test sets (default: of the next, or 10)")
    parser.add_argument("--test_utt2num_samples", type=Path, nargs="+", help="Kaldi tables of samples of the test sets")
    parser.add_argument("--teacher_config", type=Path, default=Path("conf/train_teacher.yaml"))
    parser.add_argument("--teacher_init_config", type=Path, help="first training of the teacher (default: none)")
    trained = "trained already: a training, a packed model, or a directory in Hugging Face's format (default: none)"
    parser.add_argument("--teacher", type=Path, dest="trained_teacher", help=trained)
    parser.add_argument("--student_full_config", type=Path, default=Path("conf/train_student_full.yaml"))
    parser.add_argument("--student_stream_config", type=Path, default=Path("conf/train_student_stream.yaml"))
    parser.add_argument("--no_kd", action="store_true", help="the same student is trained without a teacher as well")
    parser.add_argument("--vocab", type=int, default=500, help="tokens (default: 500)")
    parser.add_argument("--latencies", type=int, default=5, help="recognitions of the streaming student (default: 5)")
    parser.add_argument("--teacher_targets", choices=("stored", "online"), default="online", help="(default: online)")
    parser.add_argument(
        "--target_dtype", choices=DTYPES, default="float32", help="of stored targets (default: float32)"
    )
    parser.add_argument("--ngpu", type=int, default=4, help="GPUs of a training; 0: on the CPU (default: 4)")
    parser.add_argument("--tflops", type=float, help="effective TFLOP/s of a GPU in every part (default: by part)")
    parser.add_argument("--cpu_gflops", type=float, default=20.0, help="effective GFLOP/s of a CPU core (default: 20)")
    parser.add_argument("--flac_ratio", type=float, default=0.54, help="FLAC's size over 16-bit PCM's (default: 0.54)")
    return parser


@cli
def main(argv: list[str] | None = None) -> None:
    print_plan(**vars(plan_parser().parse_args(argv)))


if __name__ == "__main__":
    main()
