"""The utterances that a system recognised worst: aligned with what was said, and to be heard."""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import soundfile

from distill.audio import read_audio, read_wav_scp
from distill.errors import UserError
from distill.models.cnn import SAMPLE_RATE
from distill.scoring.score import SPELLING, align, fold, read_hypotheses


class Pair(NamedTuple):
    """Two aligned words, either empty, and the letter sclite gives such a pair: empty (correct), S, D or I."""

    ref: str
    hyp: str
    kind: str


class Utterance(NamedTuple):
    """An utterance with errors. ``audio`` is a data URL of FLAC, empty if there is no audio to be heard."""

    name: str
    pairs: list[Pair]
    errors: int
    words: int
    teacher: list[Pair]
    audio: str
    seconds: float


def aligned(ref: str, hyp: str) -> list[Pair]:
    """Words of two texts as sclite aligns them."""
    said, heard = ref.split(), hyp.split()
    pairs = []
    for i, j in align(fold(ref).split(), fold(hyp).split()):
        if i is None:
            pairs.append(Pair("", heard[j or 0], "I"))
        elif j is None:
            pairs.append(Pair(said[i], "", "D"))
        else:
            pairs.append(Pair(said[i], heard[j], "" if fold(said[i]) == fold(heard[j]) else "S"))
    return pairs


def data_url(path: str) -> str:
    """An audio file as FLAC, in a URL that holds it."""
    out = io.BytesIO()
    soundfile.write(out, read_audio(path), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(out.getvalue()).decode()


def scored_texts(trn: Path) -> list[str]:
    """Texts of a trn file that :mod:`distill.scoring.score` wrote, in the order of their ids."""
    texts = []
    for line in trn.read_text(encoding="utf-8").splitlines():
        text = line.rpartition("(utt-")[0].strip()
        for character, spelled in SPELLING.items():
            text = text.replace(spelled, chr(character))
        texts.append(text)
    return texts


def worst_utterances(
    decode_dir: Path, teacher_dir: Path, wav_scp: Path, unit: str, count: int, audio_s: float
) -> tuple[list[Utterance], list[tuple[str, str, int]]]:
    """The ``count`` utterances with most errors, and the most frequent errors of all as (said, heard, times).

    Of utterances with as many errors the one with fewer words comes first.

    Args:
        decode_dir: of the system, scored in ``unit``, wer or ter.
        teacher_dir: of the teacher, on the same test set; it may be missing.
        wav_scp: where the audio is; it may be missing.
        audio_s: seconds of audio in all, put in from the worst utterance on.
    """
    rows = read_hypotheses(decode_dir)
    score = decode_dir / f"score_{unit}"
    refs, hyps = scored_texts(score / "ref.trn"), scored_texts(score / "hyp.trn")
    trn = teacher_dir / f"score_{unit}" / "hyp.trn"
    of_teacher = scored_texts(trn) if trn.is_file() else []
    found, confusions = [], Counter[tuple[str, str]]()
    for index, (name, ref, hyp) in enumerate(zip(sorted(rows), refs, hyps, strict=True)):
        pairs = aligned(ref, hyp)
        confusions.update((fold(pair.ref), fold(pair.hyp)) for pair in pairs if pair.kind)
        errors = sum(bool(pair.kind) for pair in pairs)
        if errors:
            found.append((-errors, len(ref.split()), name, pairs, index))
    wavs = read_wav_scp(wav_scp) if wav_scp.is_file() else {}
    worst = []
    for errors, words, name, pairs, index in sorted(found)[:count]:
        seconds, audio = rows[name]["audio_s"], ""
        if name in wavs and seconds <= audio_s:
            with contextlib.suppress(UserError):  # the audio may be elsewhere by now
                audio = data_url(wavs[name])
                audio_s -= seconds
        teacher = aligned(refs[index], of_teacher[index]) if len(of_teacher) == len(refs) else []
        worst.append(Utterance(name, pairs, -errors, words, teacher, audio, seconds))
    frequent = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))[:10]
    return worst, [(ref, hyp, times) for (ref, hyp), times in frequent]
