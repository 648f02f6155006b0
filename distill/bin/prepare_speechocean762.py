"""Kaldi data directories train, valid and test of speechocean762.

    python -m distill.bin.prepare_speechocean762 --corpus downloads/speechocean762

The last 20 speakers of the corpus's training set become valid. The audio stays where it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.speechocean762 import prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory with WAVE, train and test")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory for the sets (default: data)")
    args = parser.parse_args(argv)
    for name, count in prepare(args.corpus, args.data).items():
        print(f"{args.data}/{name}: {count} utterances")


if __name__ == "__main__":
    main()
