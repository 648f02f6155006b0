"""Make training, validation and test sets from Kaldi data directories of other recipes; the audio stays where it is.

    python -m distill.bin.import_data --train /corpus/train --valid /corpus/dev --test /corpus/test_a /corpus/test_b
    python -m distill.bin.import_data --train /corpus/all --test /corpus/test      # valid: some speakers of train

Faults whose correction is unambiguous are corrected, and each correction is printed as a line: order, Windows line
ends, empty and repeated lines, a byte order mark, odd spaces, spk2utt, paths relative to the directory's recipe, and
more. Utterances without audio, text or speaker are left out of train and valid, never of a test set. Everything else is
refused.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser, true_or_false
from distill.data.import_data import import_data
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--train", type=Path, required=True, help="data directory of the training set")
    parser.add_argument("--valid", type=Path, help="of the validation set (default: some speakers of the training set)")
    parser.add_argument(
        "--test", nargs="+", required=True, help="of each test set: DIR, named after its last part, or NAME=DIR"
    )
    parser.add_argument("--valid_share", type=float, default=0.05, help="of train, without --valid (default: 0.05)")
    parser.add_argument("--unlabelled", type=true_or_false, default=False, help="the training set needs no text")
    parser.add_argument("--resample", type=true_or_false, default=False, help="accept other rates than 16 kHz")
    parser.add_argument("--allow_pipes", type=true_or_false, default=False, help="run the commands in wav.scp")
    parser.add_argument("--output", type=Path, default=Path("data"), help="(default: data)")
    import_data(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
