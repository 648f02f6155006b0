"""Kaldi data directories train, valid and test of Mini LibriSpeech, or of any parts of LibriSpeech.

    python -m distill.bin.prepare_mini_librispeech --corpus downloads/LibriSpeech
    python -m distill.bin.prepare_mini_librispeech --corpus /corpora/LibriSpeech --cut conf/speakers.txt

Without --cut: train-clean-5 without its last two speakers, these two, and dev-clean-2. The audio stays where it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.mini_librispeech import prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory with the unpacked parts")
    parser.add_argument("--cut", type=Path, help="divide all parts by speaker: lines of SPEAKER SET; * is all others")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory for the sets (default: data)")
    args = parser.parse_args(argv)
    for name, count in prepare(args.corpus, args.data, args.cut).items():
        print(f"{args.data}/{name}: {count} utterances")


if __name__ == "__main__":
    main()
