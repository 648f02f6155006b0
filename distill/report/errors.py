"""The utterances that a system recognised worst: aligned with what was said, and to be heard."""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import soundfile

from distill.audio import read_audio, read_wav_scp
from distill.bin.score import align, fold, read_hypotheses, read_text
from distill.errors import UserError
from distill.models.cnn import SAMPLE_RATE


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


def worst_utterances(
    decode_dir: Path, teacher_dir: Path | None, data_dir: Path, count: int, audio_s: float
) -> tuple[list[Utterance], list[tuple[str, str, int]]]:
    """The ``count`` utterances with most errors, and the most frequent errors of all as (said, heard, times).

    Audio is put in from the worst on, ``audio_s`` seconds in all. Of utterances with as many errors the one with fewer
    words comes first.
    """
    refs = read_text(data_dir / "text")
    rows = read_hypotheses(decode_dir)
    of_teacher: Mapping[str, dict] = {} if teacher_dir is None else read_hypotheses(teacher_dir)
    found, confusions = [], Counter[tuple[str, str]]()
    for name in sorted(refs.keys() & rows.keys()):
        pairs = aligned(refs[name], rows[name]["text"])
        confusions.update((fold(pair.ref), fold(pair.hyp)) for pair in pairs if pair.kind)
        errors = sum(bool(pair.kind) for pair in pairs)
        if errors:
            found.append((-errors, len(refs[name].split()), name, pairs))
    wavs = read_wav_scp(data_dir / "wav.scp") if (data_dir / "wav.scp").is_file() else {}
    worst = []
    for errors, words, name, pairs in sorted(found)[:count]:
        seconds, audio = rows[name]["audio_s"], ""
        if name in wavs and seconds <= audio_s:
            with contextlib.suppress(UserError):  # the audio may be elsewhere by now
                audio = data_url(wavs[name])
                audio_s -= seconds
        teacher = aligned(refs[name], of_teacher[name]["text"]) if name in of_teacher else []
        worst.append(Utterance(name, pairs, -errors, words, teacher, audio, seconds))
    frequent = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))[:10]
    return worst, [(ref, hyp, times) for (ref, hyp), times in frequent]
