"""Make a token list of phones, and spell texts in phones.

    python -m distill.bin.phone_tokens --lexicon lexicon.txt --output data/token_list/phn \\
        --texts dump/raw/lm_train.txt dump/raw/train/text dump/raw/valid/text dump/raw/test/text
    python -m distill.bin.phone_tokens --lang_dir data/lang --output data/token_list/phn --texts dump/raw/train/text

writes OUTPUT/tokens.txt, OUTPUT/lexicon.txt (every pronunciation, for the decoder wfst) and beside each text its
phones, TEXT.phn, by the first pronunciation of each word. A word that is not in the lexicon is printed with file and
line; it gets the phones of the word in the lang directory's oov.txt, or of <unk> in a lexicon, and is refused if there
is neither.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.lexicon import write_phone_tokens
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lexicon", type=Path, help="a word and its phones on each line")
    source.add_argument("--lang_dir", type=Path, help="Kaldi lang directory: phones.txt and phones/align_lexicon.txt")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="Kaldi text files")
    parser.add_argument("--output", type=Path, required=True, help="directory of the token list")
    write_phone_tokens(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
