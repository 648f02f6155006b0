"""Text of recognised tokens."""

from __future__ import annotations

from collections.abc import Iterable

from distill.errors import UserError

TOKEN_TYPES = ("char", "bpe", "word", "phn")
_NOT_IN_TEXT = ("<blank>", "<sos/eos>")


def tokens_to_text(tokens: Iterable[str], token_type: str) -> str:
    """Join tokens to a text of words separated by single spaces.

    ``<space>`` (char) and ``▁`` (bpe) become spaces; tokens of type word and phn are separated by spaces. Blank and
    sentence boundaries are dropped, ``<unk>`` stays.

    Raises:
        UserError: the token type is unknown.
    """
    if token_type not in TOKEN_TYPES:
        raise UserError(f"token_type: {token_type!r} is none of {', '.join(TOKEN_TYPES)}")
    visible = [token for token in tokens if token not in _NOT_IN_TEXT]
    if token_type == "char":
        text = "".join(" " if token == "<space>" else token for token in visible)
    elif token_type == "bpe":
        text = "".join(visible).replace("▁", " ")
    else:
        text = " ".join(visible)
    return " ".join(text.split())
