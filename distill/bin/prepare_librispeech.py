"""Make Kaldi data directories of LibriSpeech as it unpacks; the audio stays where it is.

    python -m distill.bin.prepare_librispeech --librispeech /corpora/LibriSpeech --data data

makes data/train (train-clean-100, train-clean-360 and train-other-500), dev_clean, dev_other, test_clean, test_other,
and valid (both dev sets).
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.librispeech import TRAIN, prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--librispeech", type=Path, required=True, help="directory with train-clean-100 and so on")
    parser.add_argument("--train_parts", nargs="+", default=TRAIN, help=f"(default: {' '.join(TRAIN)})")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory for the sets (default: data)")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
