"""Check Kaldi data directories before anything is made from them; the first fault is a line with file, line and cure.

python -m distill.bin.check_data --data data/train data/valid
python -m distill.bin.check_data --data data/valid --token_list data/token_list/word/tokens.txt --token_type word
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser, true_or_false
from distill.data.check import check_directories
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data directories")
    parser.add_argument("--resample", type=true_or_false, default=False, help="accept other rates than 16 kHz")
    parser.add_argument("--allow_pipes", type=true_or_false, default=False, help="run the commands in wav.scp")
    parser.add_argument("--unlabelled", type=true_or_false, default=False, help="there need be no text")
    parser.add_argument("--token_list", type=Path, help="only check that every token of the text is in this list")
    parser.add_argument("--token_type", choices=("char", "bpe", "word"), help="with --token_list")
    check_directories(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
