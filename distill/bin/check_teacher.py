"""Refuse a teacher that recognises too little to distil from, by its score on the validation set.

python -m distill.bin.check_teacher --max_error 60 exp/teacher/decode_full/valid
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser, true_or_false
from distill.errors import cli
from distill.scoring.score import check_error


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("decode_dir", type=Path, help="of the validation set, scored")
    parser.add_argument("--max_error", type=float, default=60.0, help="in per cent (default: 60)")
    parser.add_argument("--allow", type=true_or_false, default=False, help="only warn (default: false)")
    check_error(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
