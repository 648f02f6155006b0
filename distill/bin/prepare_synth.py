"""Synthesise a corpus of spoken commands with the espeak-ng of the PyPI package espeakng-loader: nothing to download.

    python -m distill.bin.prepare_synth --data data --wav data/local/wav

makes data/train, data/valid and data/test, each with speakers that the other two do not have; the accents are the same.
The same seed gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.synth import prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data directories go")
    parser.add_argument("--wav", type=Path, default=Path("data/local/wav"), help="where the audio goes")
    parser.add_argument("--num_train", type=int, default=6000, help="training utterances (default: 6000)")
    parser.add_argument("--num_valid", type=int, default=240, help="(default: 240)")
    parser.add_argument("--num_test", type=int, default=240, help="(default: 240)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
