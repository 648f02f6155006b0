"""Make the denominator graph of LF-MMI: a token n-gram estimated on the training text, or one made elsewhere.

    python -m distill.bin.make_graph --text dump/raw/lm_train.txt --token_list data/token_list/word/tokens.txt \\
        --token_type word --order 2 --output exp/graph/den.npz
    python -m distill.bin.make_graph --lm P.arpa --token_list data/token_list/word/tokens.txt --output exp/graph/den.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.errors import UserError, cli
from distill.lfmmi import DenominatorGraph


def read_token_ids(text: Path, token_list: list[str], token_type: str, bpemodel: str | None) -> list[list[int]]:
    """Token ids of every line of a Kaldi ``text`` file (its first field is the utterance id)."""
    # Not through ESPnet's build_tokenizer, which loads transformers for tokens that are none of these.
    from espnet2.text.char_tokenizer import CharTokenizer
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
    from espnet2.text.word_tokenizer import WordTokenizer

    tokenizer: CharTokenizer | SentencepiecesTokenizer | WordTokenizer
    if token_type == "bpe":
        if bpemodel is None:
            raise UserError("--bpemodel: not given; token_type bpe needs it")
        tokenizer = SentencepiecesTokenizer(bpemodel)
    else:  # a phone string is read as words: both split at spaces
        tokenizer = CharTokenizer() if token_type == "char" else WordTokenizer()
    id_of = {token: index for index, token in enumerate(token_list)}
    unknown = id_of.get("<unk>")
    lines = []
    with open(text, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            fields = line.rstrip("\n").split(maxsplit=1)
            if len(fields) < 2:
                raise UserError(f"{text}:{number}: no text after the utterance id; remove the line")
            ids = []
            for token in tokenizer.text2tokens(fields[1]):
                index = id_of.get(token, unknown)
                if index is None:
                    raise UserError(f"{text}:{number}: {token!r} is not in the token list; make it again (stage 5)")
                ids.append(index)
            lines.append(ids)
    if not lines:
        raise UserError(f"{text}: empty; the denominator graph needs the training text")
    return lines


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="training text, a Kaldi text file")
    source.add_argument(
        "--lm", type=Path, help="n-gram of tokens: an ARPA file (*.arpa) or an FST in OpenFst's text format (*.fst.txt)"
    )
    parser.add_argument("--token_list", type=Path, required=True, help="one token a line; the first is blank")
    parser.add_argument("--token_type", default="word", choices=("char", "bpe", "word", "phn"), help="(default: word)")
    parser.add_argument("--bpemodel", help="sentencepiece model (token_type bpe)")
    parser.add_argument("--order", type=int, default=2, help="order of the n-gram, 1 to 4 (default: 2)")
    parser.add_argument("--output", type=Path, required=True, help="the graph, an .npz file")
    parser.add_argument("--openfst", type=Path, help="write the n-gram here as well, in OpenFst's text format")
    args = parser.parse_args(argv)

    tokens = args.token_list.read_text(encoding="utf-8").splitlines()
    if args.text is not None:
        lines = read_token_ids(args.text, tokens, args.token_type, args.bpemodel or None)
        graph = DenominatorGraph.from_text(lines, order=args.order, vocab_size=len(tokens))
        source_of = f"{args.order}-gram from {len(lines)} lines of {args.text}"
    elif args.lm.suffix == ".arpa":
        graph, source_of = DenominatorGraph.from_arpa(args.lm, tokens), f"n-gram of {args.lm}"
    elif args.lm.suffix == ".txt":
        graph, source_of = DenominatorGraph.from_openfst(args.lm, tokens), f"n-gram of {args.lm}"
    else:
        raise UserError(f"--lm {args.lm}: must be an ARPA file (*.arpa) or OpenFst text (*.fst.txt)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    graph.save(args.output)
    if args.openfst is not None:
        graph.to_openfst(args.openfst)
    print(f"{args.output}: {source_of}, {len(tokens)} tokens, {graph.states} histories")


if __name__ == "__main__":
    main()
