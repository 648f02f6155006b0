"""Texts in tokens: check that a token list covers them, and turn them into token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.checkpoints.schema import case_of
from distill.data.tables import Table
from distill.errors import UserError


def check_tokens(path: Path, text: Table, token_list: Path, token_type: str) -> None:
    """Refuse texts with a word or character that is not in the token list.

    Args:
        path: the text file, for the message.
        text: its content.
        token_list: file with a token per line.
        token_type: word or char; with bpe any word can be spelt, and nothing is checked.
    """
    tokens = set(token_list.read_text(encoding="utf-8").split("\n"))
    for number, line in text.values():
        for token in line.split() if token_type == "word" else line.replace(" ", ""):
            if token_type != "bpe" and token not in tokens:
                raise UserError(
                    f"{path}:{number}: {token!r} is not in {token_list}; add it to the training text and make the list "
                    "again (stage 5), or remove the utterance"
                )


def text_tokenizer(token_type: str, bpemodel: str | None) -> Any:
    """ESPnet's tokenizer of a token type, which has ``text2tokens``.

    Raises:
        UserError: bpe without its model.
    """
    # Not through ESPnet's build_tokenizer: it loads transformers for token types that are not among these.
    from espnet2.text.char_tokenizer import CharTokenizer
    from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
    from espnet2.text.word_tokenizer import WordTokenizer

    if token_type == "bpe":
        if bpemodel is None:
            raise UserError("--bpemodel: not given; token_type bpe needs it")
        return SentencepiecesTokenizer(bpemodel)
    return CharTokenizer() if token_type == "char" else WordTokenizer()  # phones are separated by spaces, as words are


class TextEncoder:
    """Token ids of a text that was written with other tokens.

    Where the tokens have letters of one case only, the text is brought to it. What the tokens cannot spell, such as
    punctuation, is left out.
    """

    def __init__(self, token_list: Sequence[str], token_type: str, bpemodel: str | None) -> None:
        self._tokenizer = text_tokenizer(token_type, bpemodel)
        special = ("<blank>", "<unk>", "<sos/eos>")
        self._id_of = {token: index for index, token in enumerate(token_list) if token not in special}
        self._change_case = case_of(token_list)

    def __call__(self, text: str) -> list[int]:
        tokens = self._tokenizer.text2tokens(self._change_case(text))
        return [self._id_of[token] for token in tokens if token in self._id_of]


def read_token_ids(text: Path, token_list: list[str], token_type: str, bpemodel: str | None) -> Iterator[list[int]]:
    """Yield the token ids of every line of a Kaldi ``text`` file, tokenised as in training.

    Args:
        text: the file; the first field of a line is the utterance id.
        token_list: the tokens by id.
        token_type: char, bpe, word, or phn (phones separated by spaces).
        bpemodel: sentencepiece model, for bpe.

    Raises:
        UserError: the file is empty, a line has no text, or a token is not in the list, which has no <unk>.
    """
    tokenizer = text_tokenizer(token_type, bpemodel)
    id_of = {token: index for index, token in enumerate(token_list)}
    unknown = id_of.get("<unk>")
    number = 0
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
            yield ids
    if not number:
        raise UserError(f"{text}: empty; the denominator graph needs the training text")
