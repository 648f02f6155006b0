"""Estimate a word n-gram on text, as an ARPA file: small, for decoding with --lm.

    python -m distill.bin.make_lm --text dump/raw/lm_train.txt --order 3 --output exp/lm/words.arpa

Interpolated Witten-Bell. Any other tool's ARPA file serves as well, and one made from much more text serves better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from distill.errors import UserError, cli


def read_sentences(text: Path) -> Iterator[list[str]]:
    """Words of every line of a Kaldi ``text`` file, without the utterance id."""
    try:
        with open(text, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                fields = line.split()
                if len(fields) < 2:
                    raise UserError(f"{text}:{number}: no text after the utterance id; remove the line")
                yield fields[1:]
    except FileNotFoundError:
        raise UserError(f"{text}: not found") from None
    except UnicodeDecodeError:
        raise UserError(f"{text}: not UTF-8; convert it") from None


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="Kaldi text file: an utterance id and words a line")
    parser.add_argument("--order", type=int, default=3, help="of the n-gram (default: 3)")
    parser.add_argument("--output", type=Path, required=True, help="the ARPA file")
    args = parser.parse_args(argv)
    from distill.decode.lm import write_arpa

    count = write_arpa(read_sentences(args.text), args.order, args.output)
    print(f"{args.output}: {args.order}-gram of {args.text}, {count} n-grams")


if __name__ == "__main__":
    main()
