"""Pronunciation lexicons (a file of words and phones, or a Kaldi lang directory), and phones as tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from distill.data.tables import Table, read_table
from distill.errors import UserError
from distill.files import atomic_write, text_lines

NOT_WORDS = ("<eps>", "<s>", "</s>", "#0")
UNKNOWN_WORDS = ("<unk>", "<UNK>")
POSITION = re.compile(r"_[BIES]$")  # begin, inside, end of a word, or a word by itself


class Lexicon(NamedTuple):
    """Pronunciations of each word, in the file's order; ``unknown``: the word for out-of-vocabulary words, if any."""

    path: Path
    words: dict[str, list[tuple[str, ...]]]
    unknown: str | None

    @property
    def phones(self) -> list[str]:
        """All phones, sorted."""
        return sorted({phone for spellings in self.words.values() for spelling in spellings for phone in spelling})


def read_pronunciations(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Read line number, word and phones (or other tokens) of every line of a lexicon.

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
    """Read a lexicon file. Its word ``<unk>`` or ``<UNK>``, if there is one, is for out-of-vocabulary words."""
    words: dict[str, list[tuple[str, ...]]] = {}
    for _, word, phones in read_pronunciations(path):
        if word not in NOT_WORDS and phones not in words.setdefault(word, []):
            words[word].append(phones)
    return Lexicon(path, words, next((word for word in UNKNOWN_WORDS if word in words), None))


def read_lang_dir(lang_dir: Path) -> Lexicon:
    """Read the lexicon of a Kaldi lang directory from its phones/align_lexicon.txt.

    The position in the word is removed from phones (``AH_B`` becomes ``AH``): hidden Markov models profit from it, but
    CTC would have less training data for each token. Words of optional silence are left out, as CTC has its blank.
    oov.txt names the word for out-of-vocabulary words.

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
    """Spell every utterance with the first pronunciation of each word.

    Returns:
        Phones by utterance, and (line, word) of out-of-vocabulary words, which get the phones of ``lexicon.unknown``.

    Raises:
        UserError: there are such words, but the lexicon has no word for them.
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


def write_phone_tokens(lexicon: Path | None, lang_dir: Path | None, texts: list[Path], output: Path) -> None:
    """Write OUTPUT/tokens.txt and lexicon.txt, and beside each text its phones, TEXT.phn; print what was unknown.

    Args:
        lexicon: file of words and phones; or None.
        lang_dir: without ``lexicon``, a Kaldi lang directory.
        texts: Kaldi text files.
        output: directory of the token list.
    """
    if lexicon is not None:
        pronunciations = read_lexicon(lexicon)
    elif lang_dir is not None:
        pronunciations = read_lang_dir(lang_dir)
    else:
        raise UserError("--lexicon or --lang_dir: one must be given")
    phones_of_text = {}
    for text in texts:
        phones_of_text[text], unknown = pronounce(read_table(text, empty_values=True), text, pronunciations)
        if unknown:
            number, word = unknown[0]
            different = len({word for _, word in unknown})
            print(
                f"{text}:{number}: {word!r} is not in {pronunciations.path}; taken as {pronunciations.unknown} "
                f"({different} such words, {len(unknown)} times in all)"
            )
    for text, utterances in phones_of_text.items():
        with atomic_write(text.with_name(text.name + ".phn")) as stream:
            stream.writelines(f"{key} {' '.join(phones)}\n" for key, phones in utterances.items())
    with atomic_write(output / "lexicon.txt") as stream:
        for word, spellings in sorted(pronunciations.words.items()):
            stream.writelines(f"{word} {' '.join(spelling)}\n" for spelling in spellings)
    with atomic_write(output / "tokens.txt") as stream:
        stream.writelines(f"{token}\n" for token in ("<blank>", "<unk>", *pronunciations.phones, "<sos/eos>"))
    phones, words = len(pronunciations.phones), len(pronunciations.words)
    print(f"{output}: {phones} phones, {words} words, from {pronunciations.path}")
