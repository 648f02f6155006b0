"""Files that sclite and other scoring tools read: trn (text by utterance), ctm (timed words) and stm (segments)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.files import atomic_write

# Characters with a meaning in trn, ctm or stm: { / } alternatives, ( ) optional words and the id, @ the null word,
# ; comments, * gaps. They are spelt out, in reference and hypothesis, so that words which hold them are ordinary words.
SPELLING = {
    "{": "<lb>",
    "}": "<rb>",
    "(": "<lp>",
    ")": "<rp>",
    "/": "<sl>",
    "@": "<at>",
    "\\": "<bs>",
    ";": "<sc>",
    "*": "<st>",
}
SPELL_OUT = str.maketrans(SPELLING)


def write_trn(path: Path, texts: Mapping[str, str]) -> None:
    """Write one line per utterance, in the order of the sorted ids: ``TEXT (utt-POSITION)``.

    The position in that order stands for the id, since sclite folds the case of ids and reads parentheses in them.
    """
    with atomic_write(path) as stream:
        for position, key in enumerate(sorted(texts)):
            stream.write(f"{texts[key].translate(SPELL_OUT)} (utt-{position:07d})\n")


def read_trn(path: Path) -> list[str]:
    """Read the texts of a file that :func:`write_trn` wrote, in its order."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.rpartition("(utt-")[0].strip()
        for character, spelling in SPELLING.items():
            text = text.replace(spelling, character)
        texts.append(text)
    return texts


def write_ctm_and_stm(
    refs: Mapping[str, str],
    rows: Mapping[str, dict[str, Any]],
    speakers: Mapping[str, str],
    normalise: Callable[[str], str],
    score_dir: Path,
) -> None:
    """Write hyp.ctm (utterance, channel 1, start, duration, word, confidence) and ref.stm (a segment per utterance).

    A word lasts at least 10 ms and ends with its utterance at the latest, so that it falls into its segment.

    Args:
        refs: normalised reference text by utterance id.
        rows: decoder output by utterance id, with ``words`` and ``audio_s``.
        speakers: speaker by utterance id; the id itself stands in where there is none.
        normalise: what was done to the text; where it makes several words of one, each gets the word's time.
        score_dir: directory of both files.
    """
    with atomic_write(score_dir / "hyp.ctm") as ctm, atomic_write(score_dir / "ref.stm") as stm:
        for key in sorted(refs):
            audio_s = rows[key]["audio_s"]
            text = refs[key].translate(SPELL_OUT)
            stm.write(f"{key} 1 {speakers.get(key, key)} 0.00 {audio_s + 0.01:.2f} <o> {text}\n")
            for word in rows[key]["words"]:
                start = max(0.0, min(word["start_s"], audio_s - 0.01))
                length = max(0.01, min(word["end_s"], audio_s) - start)
                for part in normalise(word["word"]).split():
                    label = part.translate(SPELL_OUT)
                    ctm.write(f"{key} 1 {start:.2f} {length:.2f} {label} {word['confidence']:.4f}\n")
