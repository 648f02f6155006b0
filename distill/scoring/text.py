"""References and hypotheses: read from Kaldi text files and decode directories, and split into the units scored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import json_object, text_lines


def read_text(path: Path) -> dict[str, str]:
    """Map utterance ids to the text of a Kaldi ``text`` file; a text may be empty.

    Raises:
        UserError: not found, empty or not UTF-8; an empty line, or an utterance id that occurs twice.
    """
    texts: dict[str, str] = {}
    for number, line in text_lines(path, "expected lines of an utterance id and its words"):
        fields = line.split()
        if not fields:
            raise UserError(f"{path}:{number}: empty line; remove it")
        utterance, *words = fields
        if utterance in texts:
            raise UserError(f"{path}:{number}: utterance {utterance} is there twice; remove one")
        texts[utterance] = " ".join(words)
    if not texts:
        raise UserError(f"{path}: empty; there is nothing to score")
    return texts


def read_hypotheses(decode_dir: Path) -> dict[str, dict[str, Any]]:
    """Map utterance ids to the decoder's output (a row of ``hyp.JOB.jsonl``), over all jobs of a decode directory.

    Raises:
        UserError: a row is not a JSON object or has no utterance id; an utterance was decoded twice.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(decode_dir.glob("hyp.*.jsonl")):
        for number, line in text_lines(path, "decode again"):
            row = json_object(line, f"{path}:{number}", "remove the file, decode again")
            if not isinstance(row.get("utterance"), str):
                raise UserError(f"{path}:{number}: names no utterance; remove the file, decode again")
            if row["utterance"] in rows:
                raise UserError(f"{path}:{number}: {row['utterance']} was decoded twice; remove {decode_dir}")
            rows[row["utterance"]] = row
    return rows


def fold_case(text: str) -> str:
    """Lower the case of A to Z, as sclite does before it compares; letters of other scripts stay as they are."""
    return re.sub("[A-Z]+", lambda capitals: capitals.group().lower(), text)


def split_characters(text: str) -> str:
    """Characters separated by spaces, with ``<space>`` for a space: the units of ESPnet's character error rate."""
    return " ".join("<space>" if character == " " else character for character in text)


def piece_splitter(bpemodel: Path) -> Callable[[str], str]:
    """Return a function that splits text into the pieces of a sentencepiece model, separated by spaces."""
    from sentencepiece import SentencePieceProcessor

    if not bpemodel.is_file():
        raise UserError(f"{bpemodel}: not found; stage 5 makes it")
    model = SentencePieceProcessor(model_file=str(bpemodel))
    return lambda text: " ".join(model.encode_as_pieces(text))
