"""Make the denominator graph of LF-MMI: a token n-gram estimated on the training text, or one made elsewhere.

    python -m distill.bin.make_graph --text dump/raw/lm_train.txt --token_list data/token_list/word/tokens.txt \\
        --token_type word --order 2 --output exp/graph/den.npz
    python -m distill.bin.make_graph --lm P.arpa --token_list data/token_list/word/tokens.txt --output exp/graph/den.npz
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.data.denominator_from_text import make_denominator_graph
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
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
    make_denominator_graph(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
