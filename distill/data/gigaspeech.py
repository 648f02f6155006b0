"""Kaldi data directories of GigaSpeech, from GigaSpeech.json and the opus files beside it.

    python -m distill.data.gigaspeech --gigaspeech /corpora/GigaSpeech --subset XL --data data

makes data/train (the subset), dev, test, and valid (the same as dev), each with segments of the long recordings, which
stay where they are. Utterances of noise, music, silence or other languages are left out and tags of punctuation removed
from the text, as recipes for this corpus do.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.data.kaldi_dir import write_tables
from distill.errors import UserError, cli

SUBSETS = ("XS", "S", "M", "L", "XL")  # 10, 250, 1000, 2500 and 10,000 h; each holds those before it
PUNCTUATION = {"<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"}
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
# What the corpus's own scoring counts for nothing in reference and hypothesis: SpeechColab/GigaSpeech,
# utils/gigaspeech_scoring.py
FILLERS = {"UH", "UHH", "UM", "EH", "MM", "HM", "AH", "HUH", "HA", "ER", "OOF", "HEE", "ACH", "EEE", "EW"}
UNSCORED = PUNCTUATION | GARBAGE | FILLERS | {"<UNK>"}
BLOCK = 1 << 22


def read_recordings(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of ``audios``, one after the other: the whole file, of gigabytes, need not be in memory.

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
    """The words of a ``text_tn`` without tags of punctuation; None if it is no speech."""
    words = text.split()
    if any(word in GARBAGE for word in words):
        return None
    return " ".join(word for word in words if word not in PUNCTUATION) or None


def scored_words(text: str) -> str:
    """The words that GigaSpeech's own scoring counts: hyphens split, fillers, tags and <unk> are dropped."""
    return " ".join(word for word in text.replace("-", " ").split() if word.upper() not in UNSCORED)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigaspeech", type=Path, required=True, help="directory with GigaSpeech.json and audio/")
    parser.add_argument("--subset", default="XL", choices=SUBSETS, help="for training (default: XL)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory for the sets (default: data)")
    args = parser.parse_args(argv)
    path = args.gigaspeech / "GigaSpeech.json"
    sets = {"train": args.subset, "dev": "DEV", "test": "TEST"}
    tables: dict[str, dict[str, dict[str, str]]] = {
        name: {"wav.scp": {}, "text": {}, "utt2spk": {}, "segments": {}} for name in sets
    }
    left_out: Counter[str] = Counter()
    for entry in read_recordings(path):
        try:
            recording, audio = entry["aid"], args.gigaspeech / entry["path"]
            for segment in entry["segments"]:
                key = segment["sid"]
                # Written as "{XL}"; a recording is in a subset when one of its segments is
                subsets = {name.strip("{}") for name in segment["subsets"]}
                for name, subset in sets.items():
                    if subset not in subsets:
                        continue
                    words = words_of(segment["text_tn"])
                    if words is None:
                        left_out[name] += 1
                        continue
                    table = tables[name]
                    if key in table["text"]:
                        raise UserError(f"{path}: segment {key} is there twice; fetch the file again")
                    if recording not in table["wav.scp"]:
                        if not audio.is_file():
                            raise UserError(f"{path}: {recording} is in {audio}, which is not there; fetch it")
                        table["wav.scp"][recording] = str(audio.resolve())
                    table["text"][key], table["utt2spk"][key] = words, recording
                    table["segments"][key] = f"{recording} {segment['begin_time']} {segment['end_time']}"
        except (KeyError, TypeError, AttributeError) as error:
            which = entry.get("aid") if isinstance(entry, dict) else None
            raise UserError(f"{path}: recording {which} lacks {error}; fetch the file again") from None
    for name, subset in sets.items():
        if not tables[name]["text"]:
            raise UserError(f"{path}: holds no speech of subset {subset}; is it the whole file?")
    for name in ("train", "valid", "dev", "test"):
        source = "dev" if name == "valid" else name
        write_tables(args.data / name, tables[source])
        print(
            f"{args.data}/{name}: {len(tables[source]['text'])} utterances of subset {sets[source]}; "
            f"{left_out[source]} without speech are left out"
        )


if __name__ == "__main__":
    main()
