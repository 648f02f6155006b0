"""Write the number of samples of every utterance of a data directory, by which a training makes its batches.

python -m distill.bin.utterance_lengths --data dump/raw/train --output exp/stats/train/speech_shape
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.batches import write_sample_counts
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data directory; its audio is formatted")
    parser.add_argument("--output", type=Path, required=True, help="the file")
    write_sample_counts(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
