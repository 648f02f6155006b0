"""Measure the latency of a streaming student: computation per chunk, and when it emits each token.

    python -m distill.bin.latency --model exp/student_stream --teacher exp/teacher --data_dir dump/raw/test \\
        --chunk_ms 160 320 480 960 --output exp/bench.json

Audio arrives in pieces of 10 ms, as in a live session. For every chunk length:

wait        how long a frame waits by design, at worst and on average: its chunk with look-ahead, and the front end
compute     computation per chunk, median and 99th percentile, and as a share of the time between two chunks
delay       from the end of a token in the teacher's alignment to its emission, median and 90th percentile. It contains
            everything but computation: the wait, and how much later than the teacher the student emits a token
shift       how much later than in the teacher's alignment the student's token begins, median
first       from the beginning of the first token in the teacher's alignment to the first partial text, median

Tokens of student and teacher are paired where their texts agree; - stands where they never do.
"""

from __future__ import annotations

from pathlib import Path

from distill.bench.latency import measure_latency
from distill.bin.arguments import new_parser
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of a streaming student's training")
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the teacher's training")
    parser.add_argument("--data_dir", type=Path, required=True, help="with wav.scp, such as dump/raw/test")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="(default: 480)")
    parser.add_argument("--num_utts", type=int, default=50, help="number of utterances, the first ones (default: 50)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    measure_latency(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
