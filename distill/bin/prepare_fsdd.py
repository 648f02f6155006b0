"""Make connected digits from the Free Spoken Digit Dataset: recordings of single digits, joined into utterances.

    python -m distill.bin.prepare_fsdd --fsdd_dir DIR --heldout_speaker lucas --data data --wav data/local/wav

makes data/train, valid and test (of the recordings that FSDD's authors set apart for each, by the other speakers),
test_isolated (every test recording alone) and test_unseen (any recording of the held-out speaker). The same seed gives
the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.fsdd import prepare
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--fsdd_dir", type=Path, required=True, help="with the folder recordings")
    parser.add_argument("--heldout_speaker", default="lucas", help="whose recordings are for test_unseen alone")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data directories go")
    parser.add_argument("--wav", type=Path, default=Path("data/local/wav"), help="where the audio goes")
    parser.add_argument("--num_train", type=int, default=6000, help="training utterances (default: 6000)")
    parser.add_argument("--num_valid", type=int, default=200, help="(default: 200)")
    parser.add_argument("--num_test", type=int, default=300, help="of test and of test_unseen (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
