"""The denominator graph of LF-MMI from a training text, or from a token n-gram made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.data.tokens import read_token_ids
from distill.errors import UserError
from distill.lfmmi import DenominatorGraph


def make_denominator_graph(
    text: Path | None,
    lm: Path | None,
    token_list: Path,
    token_type: str,
    bpemodel: str | None,
    order: int,
    output: Path,
    openfst: Path | None,
) -> None:
    """Write a denominator graph and print a line about it.

    Args:
        text: Kaldi text file on which a token n-gram is estimated; or None.
        lm: without ``text``, an n-gram of tokens: an ARPA file (*.arpa) or OpenFst text (*.txt).
        token_list: file with a token per line, the first being blank.
        token_type: how the text is split: char, bpe, word or phn.
        bpemodel: sentencepiece model, for bpe.
        order: of the estimated n-gram, 1 to 4.
        output: the graph, an .npz file.
        openfst: if given, the n-gram is written here as well, in OpenFst's text format.
    """
    tokens = token_list.read_text(encoding="utf-8").splitlines()
    if text is not None:
        lines = 0

        def counted() -> Iterator[list[int]]:
            nonlocal lines
            for ids in read_token_ids(text, tokens, token_type, bpemodel or None):
                lines += 1
                yield ids

        graph = DenominatorGraph.from_text(counted(), order=order, vocab_size=len(tokens))
        source = f"{order}-gram from {lines} lines of {text}"
    elif lm is not None and lm.suffix == ".arpa":
        graph, source = DenominatorGraph.from_arpa(lm, tokens), f"n-gram of {lm}"
    elif lm is not None and lm.suffix == ".txt":
        graph, source = DenominatorGraph.from_openfst(lm, tokens), f"n-gram of {lm}"
    else:
        raise UserError(f"--lm {lm}: must be an ARPA file (*.arpa) or OpenFst text (*.fst.txt)")
    output.parent.mkdir(parents=True, exist_ok=True)
    graph.save(output)
    if openfst is not None:
        graph.to_openfst(openfst)
    print(f"{output}: {source}, {len(tokens)} tokens, {graph.states} histories")
