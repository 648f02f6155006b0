"""Read the tables of a Kaldi data directory, and check that they agree; audio is not opened."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from distill.data.tables import Repairs, Table, read_table, same_keys
from distill.errors import UserError

RESERVED = ("<blank>", "<sos/eos>", "<unk>", "<space>")


class DataDir(NamedTuple):
    """The tables of a data directory.

    Attributes:
        path: the directory.
        recordings: wav.scp, by recording if there are segments, else by utterance.
        speakers: utt2spk.
        text: text, or None for unlabelled data.
        segments: (line number, recording, start, end) by utterance, in seconds, with an end of -1 for the end of the
            recording; None if each line of wav.scp is an utterance.
    """

    path: Path
    recordings: Table
    speakers: Table
    text: Table | None
    segments: dict[str, tuple[int, str, float, float]] | None


def read_data_dir(
    directory: Path, repairs: Repairs | None = None, labelled: bool = True, may_drop: bool = False
) -> DataDir:
    """Read the tables of a data directory and check that they agree with each other.

    Args:
        directory: holds wav.scp, text and utt2spk, and may hold segments and spk2utt.
        repairs: if given, faults whose correction is unambiguous are corrected and recorded here: those of
            :func:`read_table`, a wrong spk2utt, a missing utt2spk, recordings without segments, and text that is not in
            Unicode's composed form (NFC).
        labelled: whether there must be a text; if not, it is not read.
        may_drop: with ``repairs``, leave out utterances that lack audio, text or speaker. Right for a training set;
            a test set must stay whole.

    Raises:
        UserError: a table is missing or faulty, or the tables have different utterances.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; correct its path")
    wav_scp, text_file, utt2spk = directory / "wav.scp", directory / "text", directory / "utt2spk"
    spk2utt, segments_file = directory / "spk2utt", directory / "segments"
    if not wav_scp.exists() and (directory / "feats.scp").exists():
        raise UserError(f"{wav_scp}: not found, only feats.scp; the models take audio: give the wav.scp as well")
    recordings = read_table(wav_scp, repairs=repairs)
    text = read_table(text_file, empty_values=may_drop, repairs=repairs) if labelled else None
    segments = _read_segments(segments_file, recordings, wav_scp, repairs) if segments_file.exists() else None
    utterance_file, utterances = (wav_scp, set(recordings)) if segments is None else (segments_file, set(segments))
    if text is not None:
        text = _check_words(text, text_file, repairs)
    speakers = _read_speakers(utt2spk, spk2utt, utterances, repairs)
    _check_speaker_order(speakers, utt2spk)
    tables: list[tuple[Path, set[str]]] = [(utterance_file, utterances), (utt2spk, set(speakers))]
    if text is not None:
        tables.append((text_file, {key for key, (_, words) in text.items() if words}))
    common = _common_utterances(tables, repairs if may_drop else None)
    used = common if segments is None else {segments[key][1] for key in common}
    if repairs is not None:
        for key in recordings.keys() - used if segments is not None else ():
            repairs.add(wav_scp, recordings[key][0], "a recording that no segment is cut from", "left out")
        recordings = {key: row for key, row in recordings.items() if key in used}
    return DataDir(
        directory,
        recordings,
        {key: row for key, row in speakers.items() if key in common},
        None if text is None else {key: row for key, row in text.items() if key in common},
        None if segments is None else {key: row for key, row in segments.items() if key in common},
    )


def _check_words(text: Table, path: Path, repairs: Repairs | None) -> Table:
    """Refuse words that are reserved tokens; with ``repairs``, bring the text into Unicode's composed form (NFC)."""
    checked = dict(text)
    for key, (number, words) in text.items():
        for word in words.split():
            if word in RESERVED:
                raise UserError(f"{path}:{number}: {word} is a token that ESPnet reserves; remove or rename the word")
        if repairs is not None and (composed := unicodedata.normalize("NFC", words)) != words:
            repairs.add(path, number, "letters with separate accents", "composed (NFC)")
            checked[key] = (number, composed)
    return checked


def _check_speaker_order(speakers: Table, utt2spk: Path) -> None:
    """Refuse speakers that are not sorted where the utterances are: Kaldi's tools want both."""
    previous = b"", b""
    for key, (number, speaker) in speakers.items():
        if (speaker.encode(), key.encode()) < previous:
            raise UserError(
                f"{utt2spk}:{number}: speaker {speaker} comes after {previous[0].decode()}, though the ids are sorted; "
                "begin each utterance's id with its speaker's, or give every utterance its own id as its speaker"
            )
        previous = speaker.encode(), key.encode()


def _common_utterances(tables: list[tuple[Path, set[str]]], repairs: Repairs | None) -> set[str]:
    """Utterances that are in all tables; without ``repairs``, tables that differ are refused."""
    common = set.intersection(*(keys for _, keys in tables))
    if repairs is None:
        for path, keys in tables[:-1]:
            same_keys(path, keys, *tables[-1])
        return common
    if not common:
        same_keys(*tables[0], *tables[-1])
    for path, keys in tables:
        for key in sorted(keys - common):
            lacking = next(other for other, other_keys in tables if key not in other_keys)
            repairs.add(path, None, f"{key} is not in {lacking}, or empty there", "left out")
    return common


def _read_segments(
    path: Path, recordings: Table, wav_scp: Path, repairs: Repairs | None
) -> dict[str, tuple[int, str, float, float]]:
    """Read ``segments``: line number, recording, start and end in seconds (-1: of the recording) by utterance."""
    segments: dict[str, tuple[int, str, float, float]] = {}
    for key, (number, line) in read_table(path, repairs=repairs).items():
        where = f"{path}:{number}"
        try:
            recording, *times = line.split()
            start, end = (float(time) for time in times)
        except ValueError:
            why = ", with times in seconds such as 1.25" if "," in line else ""
            raise UserError(f"{where}: {line!r}; expected: ID RECORDING START END{why}") from None
        if recording not in recordings:
            raise UserError(f"{where}: recording {recording} is not in {wav_scp}; add it or remove the line")
        if end == -1 and repairs is not None:  # in Kaldi: up to the end of the recording
            repairs.add(path, number, "an end of -1", "taken as the recording's end")
        elif not 0 <= start < end:
            raise UserError(f"{where}: {start} to {end} s is not within the recording; correct the line")
        segments[key] = number, recording, start, end
    return segments


def _read_speakers(utt2spk: Path, spk2utt: Path, utterances: Iterable[str], repairs: Repairs | None) -> Table:
    """Read utt2spk and compare it with spk2utt; with ``repairs``, make it from spk2utt if it is missing."""
    inverse: dict[str, str] = {}
    if spk2utt.exists():
        for speaker, (number, keys) in read_table(spk2utt, repairs=repairs).items():
            for key in keys.split():
                if inverse.setdefault(key, speaker) != speaker:
                    raise UserError(f"{spk2utt}:{number}: {key} belongs to {inverse[key]} as well; give it one speaker")
    if not utt2spk.exists() and repairs is not None:
        if inverse:
            repairs.add(utt2spk, None, "not found", "made from spk2utt")
            return {key: (0, inverse[key]) for key in sorted(inverse, key=str.encode)}
        repairs.add(utt2spk, None, "not found", "every utterance is taken as a speaker of its own")
        return {key: (0, key) for key in sorted(utterances, key=str.encode)}
    speakers = read_table(utt2spk, repairs=repairs)
    for key, (number, speaker) in speakers.items():
        if len(speaker.split()) > 1:
            raise UserError(f"{utt2spk}:{number}: {key} {speaker}; expected: ID SPEAKER, without spaces in either")
    if inverse and inverse != {key: speaker for key, (_, speaker) in speakers.items()}:
        if repairs is None:
            raise UserError(f"{spk2utt}: differs from utt2spk; remove it, it is made from utt2spk")
        repairs.add(spk2utt, None, "differs from utt2spk", "made again from utt2spk")
    return speakers
