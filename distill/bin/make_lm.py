"""Estimate a word n-gram on text, as an ARPA file: a small language model for decoding with --lm.

    python -m distill.bin.make_lm --text dump/raw/lm_train.txt --order 3 --output exp/lm/words.arpa

Its discounting is interpolated Witten-Bell. Decoding accepts any ARPA file; one from much more text is better.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.decode.estimate_lm import estimate_lm
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="Kaldi text file: an utterance id and words a line")
    parser.add_argument("--order", type=int, default=3, help="of the n-gram (default: 3)")
    parser.add_argument("--output", type=Path, required=True, help="the ARPA file")
    estimate_lm(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
