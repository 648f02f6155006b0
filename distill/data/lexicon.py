"""Pronunciation lexicons: a file of words and their phones, or a Kaldi lang directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from distill.data.check import Table
from distill.errors import UserError
from distill.files import text_lines

NOT_WORDS = ("<eps>", "<s>", "</s>", "#0")
UNKNOWN_WORDS = ("<unk>", "<UNK>")
POSITION = re.compile(r"_[BIES]$")  # begin, inside, end of a word, or a word by itself


class Lexicon(NamedTuple):
    """Pronunciations of each word in the file's order; ``unknown``: the word that stands for others, if any."""

    path: Path
    words: dict[str, list[tuple[str, ...]]]
    unknown: str | None

    @property
    def phones(self) -> list[str]:
        """All phones, sorted."""
        return sorted({phone for spellings in self.words.values() for spelling in spellings for phone in spelling})


def read_pronunciations(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Line number, word and phones of every line of a lexicon; the phones may be any other tokens.

    Raises:
        UserError: not found, not UTF-8 or empty; a word without phones; probabilities (Kaldi's lexiconp.txt).
    """
    rows = []
    for number, line in text_lines(path, "give a file with a word and its tokens on each line"):
        fields = line.split()
        if len(fields) < 2:
            raise UserError(f"{path}:{number}: expected a word and its tokens; remove or complete the line")
        rows.append((number, fields[0], tuple(fields[1:])))
    if not rows:
        raise UserError(f"{path}: empty; expected a word and its tokens on each line")
    if all(len(tokens) > 1 and re.fullmatch(r"(0?\.\d+|1(\.0*)?)(e-\d+)?", tokens[0]) for _, _, tokens in rows):
        raise UserError(f"{path}:1: has probabilities; give the lexicon.txt without them")
    return rows


def read_lexicon(path: Path) -> Lexicon:
    """A lexicon file. ``<unk>`` or ``<UNK>``, if it is a word there, stands for words that are not."""
    words: dict[str, list[tuple[str, ...]]] = {}
    for _, word, phones in read_pronunciations(path):
        if word not in NOT_WORDS and phones not in words.setdefault(word, []):
            words[word].append(phones)
    return Lexicon(path, words, next((word for word in UNKNOWN_WORDS if word in words), None))


def read_lang_dir(lang_dir: Path) -> Lexicon:
    """The lexicon of a Kaldi lang directory, from its phones/align_lexicon.txt.

    Phones lose their position in the word (``AH_B`` is ``AH``): what a hidden Markov model profits from would only
    divide CTC's evidence. Words of optional silence are left out, as blank takes its place. oov.txt says which word
    stands for those that are not there.

    Raises:
        UserError: a file is missing, or a phone is not in phones.txt.
    """
    phones_file, silence_file = lang_dir / "phones.txt", lang_dir / "phones/optional_silence.txt"
    path = lang_dir / "phones/align_lexicon.txt"
    for needed in (phones_file, path):
        if not needed.is_file():
            raise UserError(f"{needed}: not found; is it a lang directory? A lexicon.txt can be given with --lexicon")
    known = {line.split()[0] for _, line in text_lines(phones_file, "") if line.strip()}
    silent_lines = text_lines(silence_file, "") if silence_file.is_file() else []
    silence = {word for _, line in silent_lines for word in line.split()}
    positions = (lang_dir / "phones/word_boundary.txt").is_file()
    words: dict[str, list[tuple[str, ...]]] = {}
    for number, word, (_, *phones) in read_pronunciations(path):  # each line has its word twice
        if foreign := next((phone for phone in phones if phone not in known), None):
            raise UserError(f"{path}:{number}: {foreign} is not in {phones_file}; make the lang directory again")
        spelling = tuple(POSITION.sub("", phone) if positions else phone for phone in phones)
        if word in NOT_WORDS or set(spelling) <= silence:
            continue
        if spelling not in words.setdefault(word, []):
            words[word].append(spelling)
    if not words:
        raise UserError(f"{path}: has no word with phones; give the lexicon.txt with --lexicon")
    oov_file = lang_dir / "oov.txt"
    oov = "".join(line for _, line in text_lines(oov_file, "")).strip() if oov_file.is_file() else ""
    return Lexicon(path, words, oov if oov in words else None)


def pronounce(text: Table, text_file: Path, lexicon: Lexicon) -> tuple[dict[str, list[str]], list[tuple[int, str]]]:
    """Phones of every utterance, by each word's first pronunciation, and (line, word) of what is not in the lexicon.

    Raises:
        UserError: a word is not in the lexicon, which has no word for the unknown.
    """
    phones: dict[str, list[str]] = {}
    unknown: list[tuple[int, str]] = []
    for key, (number, line) in text.items():
        phones[key] = []
        for word in line.split():
            if word not in lexicon.words:
                unknown.append((number, word))
            known = word if word in lexicon.words else lexicon.unknown
            if known is not None:
                phones[key] += lexicon.words[known][0]
    if unknown and lexicon.unknown is None:
        number, word = unknown[0]
        different = len({word for _, word in unknown})
        raise UserError(
            f"{text_file}:{number}: {word!r} is not in {lexicon.path} ({different} such words in all); add them with "
            "their phones, or a line for <unk> that stands for all of them"
        )
    return phones, unknown
