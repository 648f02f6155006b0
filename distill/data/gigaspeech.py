"""Kaldi data directories of GigaSpeech from GigaSpeech.json, and the corpus's way of scoring."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.data.write_dir import write_tables
from distill.errors import UserError

SUBSETS = ("XS", "S", "M", "L", "XL")  # 10, 250, 1000, 2500 and 10,000 h; each holds those before it
PUNCTUATION = {"<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"}
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
# Not counted by the corpus's scoring script, in reference and hypothesis: SpeechColab/GigaSpeech,
# utils/gigaspeech_scoring.py
FILLERS = {"UH", "UHH", "UM", "EH", "MM", "HM", "AH", "HUH", "HA", "ER", "OOF", "HEE", "ACH", "EEE", "EW"}
UNSCORED = PUNCTUATION | GARBAGE | FILLERS | {"<UNK>"}
BLOCK = 1 << 22


def read_recordings(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of ``audios`` one after another, without the whole file, which has gigabytes, in memory.

    Raises:
        UserError: not found, or not of this form.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give GigaSpeech's directory with --gigaspeech")
    decoder = json.JSONDecoder()
    with (
        open(path, encoding="utf-8", errors="replace") as stream,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, mininterval=1) as progress,
    ):

        def more(buffer: str) -> str:
            block = stream.read(max(BLOCK, len(buffer)))
            if not block:
                raise UserError(f"{path}: not JSON with a list of audios, or cut off; fetch the file again")
            progress.update(len(block.encode()))
            return buffer + block

        buffer = ""
        while '"audios"' not in buffer:
            buffer = more(buffer[-10:])
        buffer = buffer[buffer.index('"audios"') + len('"audios"') :]
        while "[" not in buffer:
            buffer = more(buffer)
        at = buffer.index("[") + 1
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n,":
                at += 1
            if at < len(buffer) and buffer[at] == "]":
                return
            try:
                entry, at = decoder.raw_decode(buffer, at)
            except (json.JSONDecodeError, RecursionError):
                buffer, at = more(buffer[at:]), 0
                continue
            if not isinstance(entry, dict):
                raise UserError(f"{path}: among its audios is {str(entry)[:40]!r}; fetch the file again")
            yield entry


def words_of(text: str) -> str | None:
    """Remove the punctuation tags of a ``text_tn``; None if it is not speech."""
    words = text.split()
    if any(word in GARBAGE for word in words):
        return None
    return " ".join(word for word in words if word not in PUNCTUATION) or None


def scored_words(text: str) -> str:
    """Keep the words that GigaSpeech's scoring counts: hyphens are split, fillers, tags and <unk> dropped."""
    return " ".join(word for word in text.replace("-", " ").split() if word.upper() not in UNSCORED)


Tables = dict[str, dict[str, str]]  # wav.scp, text, utt2spk and segments


def prepare(gigaspeech: Path, subset: str, data: Path) -> None:
    """Write train (the subset), valid, dev and test into ``data``, and print a line for each.

    Args:
        gigaspeech: directory with GigaSpeech.json and audio/.
        subset: one of :data:`SUBSETS`.
        data: directory of the data directories.
    """
    path = gigaspeech / "GigaSpeech.json"
    subsets = {"train": subset, "dev": "DEV", "test": "TEST"}
    sets: dict[str, Tables] = {name: {"wav.scp": {}, "text": {}, "utt2spk": {}, "segments": {}} for name in subsets}
    left_out: Counter[str] = Counter()
    for entry in read_recordings(path):
        try:
            _add_recording(entry, path, subsets, sets, left_out)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: recording {entry.get('aid')} lacks {error}; fetch the file again") from None
    for name, corpus_name in subsets.items():
        if not sets[name]["text"]:
            raise UserError(f"{path}: holds no speech of subset {corpus_name}; is it the whole file?")
    for name in ("train", "valid", "dev", "test"):
        source = "dev" if name == "valid" else name
        write_tables(data / name, sets[source])
        print(
            f"{data}/{name}: {len(sets[source]['text'])} utterances of subset {subsets[source]}; "
            f"{left_out[source]} without speech are left out"
        )


def _add_recording(
    entry: dict[str, Any], path: Path, subsets: dict[str, str], sets: dict[str, Tables], left_out: Counter[str]
) -> None:
    """Add the segments of a recording to the tables of the sets they belong to; count those without speech."""
    recording, audio = entry["aid"], path.parent / entry["path"]
    for segment in entry["segments"]:
        key = segment["sid"]
        # Written as "{XL}"; a recording is in a subset if one of its segments is
        segment_subsets = {name.strip("{}") for name in segment["subsets"]}
        for name, corpus_name in subsets.items():
            if corpus_name not in segment_subsets:
                continue
            words = words_of(segment["text_tn"])
            if words is None:
                left_out[name] += 1
                continue
            tables = sets[name]
            if key in tables["text"]:
                raise UserError(f"{path}: segment {key} is there twice; fetch the file again")
            if recording not in tables["wav.scp"]:
                if not audio.is_file():
                    raise UserError(f"{path}: {recording} is in {audio}, which is not there; fetch it")
                tables["wav.scp"][recording] = str(audio.resolve())
            tables["text"][key], tables["utt2spk"][key] = words, recording
            tables["segments"][key] = f"{recording} {segment['begin_time']} {segment['end_time']}"
