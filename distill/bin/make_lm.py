"""Estimate a word n-gram on text, as an ARPA file: a small language model for decoding with --lm.

    python -m distill.bin.make_lm --text dump/raw/lm_train.txt --order 3 --output exp/lm/words.arpa

Interpolated Witten-Bell. ARPA files of other tools can be used as well; one made from much more text is better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.decode.lm import estimate_lm
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="Kaldi text file: an utterance id and words a line")
    parser.add_argument("--order", type=int, default=3, help="of the n-gram (default: 3)")
    parser.add_argument("--output", type=Path, required=True, help="the ARPA file")
    estimate_lm(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
