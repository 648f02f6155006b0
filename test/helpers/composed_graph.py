"""The decoding graph by composition and determinisation with OpenFst, as a reference for the one made directly."""

from __future__ import annotations

import tempfile
from pathlib import Path

import kaldifst
import kaldilm

from distill.decode.tlg_graph import Graph, Lexicon


def composed(lm: Path, lexicon: Lexicon, token_list: list[str], lm_weight: float, word_bonus: float = 0.0) -> Graph:
    """T ∘ min(det(L ∘ G)), with disambiguation symbols where spellings begin alike."""
    words = ["<eps>", *sorted(lexicon), "#0"]
    with tempfile.TemporaryDirectory() as folder:
        symbols = Path(folder, "words.txt")
        symbols.write_text("".join(f"{word} {label}\n" for label, word in enumerate([*words, "<s>", "</s>"])))
        text = kaldilm.arpa2fst(str(lm), "", disambig_symbol="#0", read_symbol_table=str(symbols), max_arpa_warnings=0)
    separator = token_list.index("<space>") if "<space>" in token_list else None
    g = kaldifst.compile("\n".join(_weighted(line.split(), lm_weight, word_bonus) for line in text.splitlines()))
    kaldifst.arcsort(g, "ilabel")
    mark = len(token_list) + 1
    lg = kaldifst.compose(_lexicon(words, lexicon, separator, mark), g)
    kaldifst.determinize_star(lg)
    kaldifst.minimize_encoded(lg)
    lines = (line.split() for line in lg.to_str().splitlines())
    lg = kaldifst.compile("\n".join(" ".join(_unmarked(fields, mark)) for fields in lines))
    kaldifst.arcsort(lg, "ilabel")
    tokens = sorted({token for spellings in lexicon.values() for s in spellings for token in s} | {separator or 1})
    return Graph(kaldifst.compose(_topology(tokens), lg), words, lexicon, separator, False)


def _weighted(fields: list[str], lm_weight: float, word_bonus: float) -> str:
    if not fields:
        return ""
    cost = lm_weight * (float(fields[-1]) if len(fields) in (2, 5) else 0.0)
    if len(fields) < 4:
        return f"{fields[0]} {cost!r}"
    return " ".join((*fields[:4], repr(cost - word_bonus * (fields[3] != "0"))))


def _unmarked(fields: list[str], mark: int) -> list[str]:
    if len(fields) >= 4 and int(fields[2]) >= mark:
        fields[2] = "0"
    return fields


def _lexicon(words: list[str], lexicon: Lexicon, separator: int | None, mark: int) -> kaldifst.StdVectorFst:
    prefixes = {s[:n] for spellings in lexicon.values() for s in spellings for n in range(1, len(s))}
    taken: dict[tuple[int, ...], int] = {}
    backoff = f"{mark} {len(words) - 1}"
    before, after = (0, 0) if separator is None else (1, 2)
    lines = ["0", f"0 0 {backoff}"]
    if separator is not None:
        lines = ["0 1 0 0", "0", "2", f"0 0 {backoff}", f"2 2 {backoff}", f"2 1 {separator + 1} 0"]
    free = 3
    for label, word in enumerate(words[1:-1], 1):
        for spelling in lexicon[word]:
            symbols = [token + 1 for token in spelling]
            count = taken[spelling] = taken.get(spelling, 0) + 1
            if count > 1 or spelling in prefixes:
                symbols.append(mark + count)
            state = before
            for position, symbol in enumerate(symbols):
                target = after
                if position < len(symbols) - 1:
                    target, free = free, free + 1
                lines.append(f"{state} {target} {symbol} {0 if position else label}")
                state = target
    fst = kaldifst.compile("\n".join(lines))
    kaldifst.arcsort(fst, "olabel")
    return fst


def _topology(tokens: list[int]) -> kaldifst.StdVectorFst:
    lines = ["0 0 1 0", "0"]
    for state, token in enumerate(tokens, 1):
        lines += [f"0 {state} {token + 1} {token + 1}", f"{state} {state} {token + 1} 0", f"{state} 0 1 0", str(state)]
        lines += [f"{state} {to} {other + 1} {other + 1}" for to, other in enumerate(tokens, 1) if to != state]
    fst = kaldifst.compile("\n".join(lines))
    kaldifst.arcsort(fst, "olabel")
    return fst
