"""Make training, validation and test sets from Kaldi data directories of other recipes; the audio stays where it is."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from distill.data.check_audio import recording_seconds
from distill.data.read_dir import DataDir, read_data_dir
from distill.data.tables import Repairs
from distill.data.write_dir import write_data_tables
from distill.errors import UserError


def absolute_paths(data: DataDir, repairs: Repairs) -> DataDir:
    """Make the paths in wav.scp absolute: relative to the current directory, else to where the data's recipe ran.

    Raises:
        UserError: there are files in wav.scp that are nowhere.
    """
    recipe = data.path.resolve()
    bases = [Path.cwd(), *(recipe, *recipe.parents)[:4]]
    recordings, missing = {}, []
    for key, (number, entry) in data.recordings.items():
        if not entry.endswith("|") and not entry.startswith("/"):
            file = re.sub(r"(\.ark):\d+$", r"\1", entry)
            base = next((base for base in bases if (base / file).is_file()), None)
            if base is not None:
                if base != bases[0]:
                    repairs.add(data.path / "wav.scp", number, f"{entry} is relative", f"taken as relative to {base}")
                entry = str(base / entry)
            else:
                missing.append((number, entry))
        recordings[key] = number, entry
    if missing:
        (number, entry), wav_scp = missing[0], data.path / "wav.scp"
        others = f" ({len(missing)} such lines in all)" if len(missing) > 1 else ""
        raise UserError(
            f"{wav_scp}:{number}: {entry}: no such audio file, neither from {bases[0]} nor from {recipe} and the "
            f"directories above it{others}; correct the path"
        )
    return data._replace(recordings=recordings)


def close_segments(data: DataDir, resample: bool, allow_pipes: bool) -> DataDir:
    """Replace the end -1 of a segment by the length of its recording."""
    if data.segments is None:
        return data
    seconds: dict[str, float] = {}
    segments = {}
    for key, (number, recording, start, end) in data.segments.items():
        if end == -1:
            if recording not in seconds:
                line, entry = data.recordings[recording]
                try:
                    seconds[recording] = recording_seconds(entry, resample, allow_pipes)
                except UserError as error:
                    raise UserError(f"{data.path / 'wav.scp'}:{line}: {error}") from None
            end = seconds[recording]
        segments[key] = number, recording, start, end
    return data._replace(segments=segments)


def split_by_speaker(data: DataDir, share: float) -> tuple[set[str], set[str]]:
    """Divide utterances by speaker: those that stay, and about ``share`` of all for a set of their own.

    Speakers are drawn in the order of a checksum of their names: the same every time, but not the alphabet's first.
    """
    counts = Counter(speaker for _, speaker in data.speakers.values())
    drawn: set[str] = set()
    number = 0
    for speaker in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if number >= share * len(data.speakers) or len(drawn) == len(counts) - 1:
            break
        drawn.add(speaker)
        number += counts[speaker]
    if not drawn:
        raise UserError(
            f"{data.path}/utt2spk: one speaker only, so none can be kept apart for validation; give a set "
            "(--source_valid DIR)"
        )
    held_out = {key for key, (_, speaker) in data.speakers.items() if speaker in drawn}
    return set(data.speakers) - held_out, held_out


def refuse_shared(train: DataDir, other: DataDir) -> None:
    """Refuse a set that shares utterances or audio with the training set: its error rate would mean nothing."""

    def audio_of(data: DataDir) -> dict[tuple, str]:
        if data.segments is None:
            return {(entry,): key for key, (_, entry) in data.recordings.items()}
        cuts = data.segments.items()
        return {(data.recordings[recording][1], start, end): key for key, (_, recording, start, end) in cuts}

    for key in other.speakers.keys() & train.speakers.keys():
        number = other.speakers[key][0]
        raise UserError(f"{other.path}/utt2spk:{number}: {key} is in {train.path} as well; take it out of one of them")
    train_audio = audio_of(train)
    for audio, key in audio_of(other).items():
        if audio in train_audio:
            raise UserError(
                f"{other.path}: {key} is the audio of {train_audio[audio]} in {train.path}; take one of them out"
            )


def parse_test_sets(given: list[str]) -> dict[str, Path]:
    """Directories of test sets by name, from ``DIR`` (named after its last part) or ``NAME=DIR``."""
    tests: dict[str, Path] = {}
    for option in given:
        name, _, path = option.rpartition("=")
        name = name or Path(path).name
        if name in ("train", "valid", *tests) or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--test {option}: no other set can be named {name!r}; name it: NAME={path}")
        tests[name] = Path(path)
    return tests


def import_data(
    train: Path,
    valid: Path | None,
    test: list[str],
    valid_share: float,
    unlabelled: bool,
    resample: bool,
    allow_pipes: bool,
    output: Path,
) -> None:
    """Write OUTPUT/train, OUTPUT/valid and the test sets, and print each repair and each set.

    Args:
        train: data directory of the training set.
        valid: of the validation set; None takes some speakers of the training set.
        test: of each test set, ``DIR`` or ``NAME=DIR``.
        valid_share: about this share of the training set becomes the validation set, without ``valid``.
        unlabelled: whether the training set has no text.
        resample: accept other sample rates than 16 kHz.
        allow_pipes: run the commands in wav.scp.
        output: directory of the sets.
    """
    if not 0 < valid_share < 1:
        raise UserError(f"--valid_share {valid_share}: must be between 0 and 1")
    if unlabelled and valid is None:
        raise UserError("--unlabelled true: the validation set needs text; give one (--source_valid DIR)")
    tests = parse_test_sets(test)

    def read(directory: Path, labelled: bool = True, may_drop: bool = True) -> DataDir:
        repairs = Repairs()
        try:
            data = absolute_paths(read_data_dir(directory, repairs, labelled, may_drop), repairs)
            return close_segments(data, resample, allow_pipes)
        finally:
            for line in repairs.lines():
                print(f"repaired: {line}", flush=True)

    train_data = read(train, labelled=not unlabelled)
    others = {"valid": read(valid)} if valid is not None else {}
    others.update({name: read(path, may_drop=False) for name, path in tests.items()})
    for other in others.values():
        refuse_shared(train_data, other)
    chosen = set(train_data.speakers)
    if valid is None:
        chosen, held_out = split_by_speaker(train_data, valid_share)
        write_data_tables(output / "valid", train_data, held_out)
        print(f"{output}/valid: {len(held_out)} utterances of speakers kept apart from {train}")
    write_data_tables(output / "train", train_data, chosen)
    print(f"{output}/train: {len(chosen)} utterances of {train}")
    for name, other in others.items():
        write_data_tables(output / name, other, set(other.speakers))
        print(f"{output}/{name}: {len(other.speakers)} utterances of {other.path}")
