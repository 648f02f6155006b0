"""Make Kaldi data directories of GigaSpeech, from GigaSpeech.json and the opus files beside it.

    python -m distill.bin.prepare_gigaspeech --gigaspeech /corpora/GigaSpeech --subset XL --data data

makes data/train (the subset), dev, test, and valid (the same as dev), each with segments of the long recordings, which
stay where they are. Utterances of noise, music, silence or other languages are left out, and tags of punctuation are
removed from the text, as recipes for this corpus do.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.gigaspeech import SUBSETS, prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--gigaspeech", type=Path, required=True, help="directory with GigaSpeech.json and audio/")
    parser.add_argument("--subset", default="XL", choices=SUBSETS, help="for training (default: XL)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory for the sets (default: data)")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
