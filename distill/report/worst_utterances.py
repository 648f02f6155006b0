"""The utterances with the most errors, aligned with their references, with their audio."""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import soundfile

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp
from distill.errors import UserError
from distill.scoring.counts import align
from distill.scoring.text import fold_case, read_hypotheses
from distill.scoring.trn import read_trn


class Pair(NamedTuple):
    """Two aligned words, one of which may be empty; ``kind`` is empty (correct), or sclite's S, D or I."""

    ref: str
    hyp: str
    kind: str


class Utterance(NamedTuple):
    """An utterance with errors, aligned for the system and its teacher; ``audio`` is a data URL of FLAC, or empty."""

    name: str
    pairs: list[Pair]
    errors: int
    words: int
    teacher: list[Pair]
    audio: str
    seconds: float


def aligned(ref: str, hyp: str) -> list[Pair]:
    """Align the words of two texts as sclite does."""
    ref_words, hyp_words = ref.split(), hyp.split()
    pairs = []
    for i, j in align(fold_case(ref).split(), fold_case(hyp).split()):
        if i is None:
            pairs.append(Pair("", hyp_words[j or 0], "I"))
        elif j is None:
            pairs.append(Pair(ref_words[i], "", "D"))
        else:
            pairs.append(
                Pair(ref_words[i], hyp_words[j], "" if fold_case(ref_words[i]) == fold_case(hyp_words[j]) else "S")
            )
    return pairs


def data_url(path: str) -> str:
    """Encode an audio file as FLAC in a data URL."""
    out = io.BytesIO()
    soundfile.write(out, read_audio(path), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(out.getvalue()).decode()


def worst_utterances(
    decode_dir: Path, teacher_dir: Path, wav_scp: Path, unit: str, count: int, audio_s: float
) -> tuple[list[Utterance], list[tuple[str, str, int]]]:
    """The ``count`` utterances with the most errors, and the most frequent errors as (reference, hypothesis, times).

    Of utterances with equally many errors the one with fewer words comes first.

    Args:
        decode_dir: of the system, scored in ``unit``, wer or ter.
        teacher_dir: of the teacher, on the same test set; it may be missing.
        wav_scp: of the audio; it may be missing.
        audio_s: seconds of audio that the page may hold, given to the worst utterances first.
    """
    rows = read_hypotheses(decode_dir)
    score = decode_dir / f"score_{unit}"
    refs, hyps = read_trn(score / "ref.trn"), read_trn(score / "hyp.trn")
    trn = teacher_dir / f"score_{unit}" / "hyp.trn"
    teacher_hyps = read_trn(trn) if trn.is_file() else []
    with_errors, confusions = [], Counter[tuple[str, str]]()
    for index, (name, ref, hyp) in enumerate(zip(sorted(rows), refs, hyps, strict=True)):
        pairs = aligned(ref, hyp)
        confusions.update((fold_case(pair.ref), fold_case(pair.hyp)) for pair in pairs if pair.kind)
        errors = sum(bool(pair.kind) for pair in pairs)
        if errors:
            with_errors.append((-errors, len(ref.split()), name, pairs, index))
    wavs = read_wav_scp(wav_scp) if wav_scp.is_file() else {}
    worst = []
    for errors, words, name, pairs, index in sorted(with_errors)[:count]:
        seconds, audio = rows[name]["audio_s"], ""
        if name in wavs and seconds <= audio_s:
            with contextlib.suppress(UserError):  # the audio may have been moved since
                audio = data_url(wavs[name])
                audio_s -= seconds
        teacher = aligned(refs[index], teacher_hyps[index]) if len(teacher_hyps) == len(refs) else []
        worst.append(Utterance(name, pairs, -errors, words, teacher, audio, seconds))
    frequent = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))[:10]
    return worst, [(ref, hyp, times) for (ref, hyp), times in frequent]
