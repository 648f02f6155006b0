"""Measure size and real-time factor of a teacher and its students.

    python -m distill.bin.speed --models exp/teacher exp/student_full exp/student_stream --export exp/export \\
        --data_dir dump/raw/test --chunk_ms 160 320 480 960 --output exp/bench.json

A streaming student gets the audio chunk by chunk, at each of the chunk lengths, and so do the exported models of the
last of --models, in onnxruntime; any other network gets whole utterances. The systems take turns on one thread. A
real-time factor is the computation time of all utterances over their length: the median of the rounds, with the least
and the largest. --output keeps what else is in the file and gets the figures as ``speed``.
"""

from __future__ import annotations

from pathlib import Path

from distill.bench.speed import measure_speed
from distill.bin.arguments import new_parser
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="directories of trainings")
    parser.add_argument("--export", type=Path, help="directory that distill.bin.export made of the last of them")
    parser.add_argument("--data_dir", type=Path, required=True, help="with wav.scp, such as dump/raw/test")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="(default: 480)")
    parser.add_argument("--num_utts", type=int, default=20, help="number of utterances, the first ones (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--output", type=Path, help="JSON file to put the figures in")
    measure_speed(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
