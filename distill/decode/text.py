"""From tokens to text."""

from __future__ import annotations

from collections.abc import Iterable

from distill.errors import UserError

TOKEN_TYPES = ("char", "bpe", "word", "phn")
_SILENT = ("<blank>", "<sos/eos>")


def tokens_to_text(tokens: Iterable[str], token_type: str) -> str:
    """Join tokens as their type demands: ``<space>`` of char and ``▁`` of bpe become spaces, word and phn get them.

    Blank and sentence marks are dropped, ``<unk>`` stays.
    """
    if token_type not in TOKEN_TYPES:
        raise UserError(f"token_type: {token_type!r} is none of {', '.join(TOKEN_TYPES)}")
    spoken = [token for token in tokens if token not in _SILENT]
    if token_type == "char":
        text = "".join(" " if token == "<space>" else token for token in spoken)
    elif token_type == "bpe":
        text = "".join(spoken).replace("▁", " ")
    else:
        text = " ".join(spoken)
    return " ".join(text.split())
