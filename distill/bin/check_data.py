"""Check Kaldi data directories before anything is made from them; the first fault is one line with file, line and cure.

python -m distill.bin.check_data --data data/train data/valid
python -m distill.bin.check_data --data data/valid --token_list data/token_list/word/tokens.txt --token_type word
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.check import check_data_dir, check_tokens, read_table, true_or_false
from distill.errors import UserError, cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data directories")
    parser.add_argument("--resample", type=true_or_false, default=False, help="accept other rates than 16 kHz")
    parser.add_argument("--allow_pipes", type=true_or_false, default=False, help="run the commands in wav.scp")
    parser.add_argument("--unlabelled", type=true_or_false, default=False, help="there need be no text")
    parser.add_argument("--token_list", type=Path, help="only check that every token of the text is in this list")
    parser.add_argument("--token_type", choices=("char", "bpe", "word"), help="with --token_list")
    args = parser.parse_args(argv)
    for directory in args.data:
        if args.token_list is not None:
            if args.token_type is None or not args.token_list.is_file():
                raise UserError(f"{args.token_list}: not found, or --token_type is missing; give both")
            check_tokens(directory / "text", read_table(directory / "text"), args.token_list, args.token_type)
            continue
        count, hours = check_data_dir(directory, args.resample, args.allow_pipes, labelled=not args.unlabelled)
        print(f"{directory}: {count} utterances, {hours:.2f} h, nothing wrong")


if __name__ == "__main__":
    main()
