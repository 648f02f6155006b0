"""Phones for tokens: the token list, the lexicon in those tokens, and texts spelt in them.

    python -m distill.bin.phone_tokens --lexicon lexicon.txt --output data/token_list/phn \\
        --texts dump/raw/lm_train.txt dump/raw/train/text dump/raw/valid/text dump/raw/test/text
    python -m distill.bin.phone_tokens --lang_dir data/lang --output data/token_list/phn --texts dump/raw/train/text

writes OUTPUT/tokens.txt, OUTPUT/lexicon.txt (every pronunciation, for the decoder wfst) and beside each text its
phones, TEXT.phn. A text has the first pronunciation of each word. A word that is not in the lexicon is told with file
and line; it gets the phones of the word in the lang directory's oov.txt, or of <unk> in a lexicon, and is refused where
there is neither.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.check import read_table
from distill.data.lexicon import pronounce, read_lang_dir, read_lexicon
from distill.errors import cli
from distill.files import atomic_write


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lexicon", type=Path, help="a word and its phones on each line")
    source.add_argument("--lang_dir", type=Path, help="Kaldi lang directory: phones.txt and phones/align_lexicon.txt")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="Kaldi text files")
    parser.add_argument("--output", type=Path, required=True, help="directory of the token list")
    args = parser.parse_args(argv)
    lexicon = read_lexicon(args.lexicon) if args.lexicon is not None else read_lang_dir(args.lang_dir)
    spelt = {}
    for text in args.texts:
        spelt[text], unknown = pronounce(read_table(text, empty_values=True), text, lexicon)
        if unknown:
            number, word = unknown[0]
            different = len({word for _, word in unknown})
            print(
                f"{text}:{number}: {word!r} is not in {lexicon.path}; taken as {lexicon.unknown} "
                f"({different} such words, {len(unknown)} times in all)"
            )
    for text, phones in spelt.items():
        with atomic_write(text.with_name(text.name + ".phn")) as stream:
            stream.writelines(f"{key} {' '.join(said)}\n" for key, said in phones.items())
    with atomic_write(args.output / "lexicon.txt") as stream:
        for word, spellings in sorted(lexicon.words.items()):
            stream.writelines(f"{word} {' '.join(spelling)}\n" for spelling in spellings)
    tokens = ["<blank>", "<unk>", *lexicon.phones, "<sos/eos>"]
    with atomic_write(args.output / "tokens.txt") as stream:
        stream.writelines(f"{token}\n" for token in tokens)
    print(f"{args.output}: {len(lexicon.phones)} phones, {len(lexicon.words)} words, from {lexicon.path}")


if __name__ == "__main__":
    main()
