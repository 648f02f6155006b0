"""Make data/train, data/valid and the test sets from Kaldi data directories of somewhere else; audio stays where it is.

    python -m distill.bin.import_data --train /corpus/train --valid /corpus/dev --test /corpus/test_a /corpus/test_b
    python -m distill.bin.import_data --train /corpus/all --test /corpus/test      # valid: some speakers of train

What has only one reading is repaired, and each repair is told in a line: order, Windows line ends, empty and repeated
lines, a byte order mark, odd spaces, spk2utt, paths relative to the directory's recipe, and more. Utterances without
audio, text or speaker are left out of train and valid, never of a test set. Everything else is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from pathlib import Path

from distill.data.check import DataDir, Repairs, read_data_dir, recording_seconds, true_or_false
from distill.data.kaldi_dir import write_data_tables
from distill.errors import UserError, cli


def absolute_paths(data: DataDir, repairs: Repairs) -> DataDir:
    """wav.scp with absolute paths: a relative one is looked for from here, then from where its recipe ran."""
    recipe = data.path.resolve()
    bases = [Path.cwd(), *(recipe, *recipe.parents)[:4]]
    recordings = {}
    for key, (number, entry) in data.recordings.items():
        if not entry.endswith("|") and not entry.startswith("/"):
            file = re.sub(r"(\.ark):\d+$", r"\1", entry)
            found = next((base for base in bases if (base / file).is_file()), None)
            if found is not None:
                if found != bases[0]:
                    repairs.add(data.path / "wav.scp", number, f"{entry} is relative", f"taken as seen from {found}")
                entry = str(found / entry)
        recordings[key] = number, entry
    return data._replace(recordings=recordings)


def open_ends(data: DataDir, resample: bool, allow_pipes: bool) -> DataDir:
    """Segments that end with their recording (-1) get its length."""
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
    """Utterances that stay and those of whole speakers, about ``share`` of all, that go to a set of their own.

    The speakers are drawn by a checksum of their names: the same ones every time, and not the first of the alphabet.
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
            f"{data.path}/utt2spk: one speaker only, so none can be kept apart for validation; give --valid DIR"
        )
    gone = {key for key, (_, speaker) in data.speakers.items() if speaker in drawn}
    return set(data.speakers) - gone, gone


def refuse_shared(train: DataDir, other: DataDir) -> None:
    """Refuse a set that has utterances or audio of the training set: its score would say nothing."""

    def audio_of(data: DataDir) -> dict[tuple, str]:
        if data.segments is None:
            return {(entry,): key for key, (_, entry) in data.recordings.items()}
        cuts = data.segments.items()
        return {(data.recordings[recording][1], start, end): key for key, (_, recording, start, end) in cuts}

    for key in other.speakers.keys() & train.speakers.keys():
        number = other.speakers[key][0]
        raise UserError(f"{other.path}/utt2spk:{number}: {key} is in {train.path} as well; take it out of one of them")
    heard = audio_of(train)
    for audio, key in audio_of(other).items():
        if audio in heard:
            raise UserError(f"{other.path}: {key} is the audio of {heard[audio]} in {train.path}; take one of them out")


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="data directory of the training set")
    parser.add_argument("--valid", type=Path, help="of the validation set (default: some speakers of the training set)")
    parser.add_argument(
        "--test", nargs="+", required=True, help="of each test set: DIR, named after its last part, or NAME=DIR"
    )
    parser.add_argument("--valid_share", type=float, default=0.05, help="of train, without --valid (default: 0.05)")
    parser.add_argument("--unlabelled", type=true_or_false, default=False, help="the training set needs no text")
    parser.add_argument("--resample", type=true_or_false, default=False, help="accept other rates than 16 kHz")
    parser.add_argument("--allow_pipes", type=true_or_false, default=False, help="run the commands in wav.scp")
    parser.add_argument("--output", type=Path, default=Path("data"), help="(default: data)")
    args = parser.parse_args(argv)
    if not 0 < args.valid_share < 1:
        raise UserError(f"--valid_share {args.valid_share}: must be between 0 and 1")
    if args.unlabelled and args.valid is None:
        raise UserError("--unlabelled true: the validation set needs text; give --valid DIR")
    tests: dict[str, Path] = {}
    for given in args.test:
        name, _, path = given.rpartition("=")
        name = name or Path(path).name
        if name in ("train", "valid", *tests) or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--test {given}: there can be no other set named {name!r}; name it: --test NAME={path}")
        tests[name] = Path(path)

    def read(directory: Path, labelled: bool = True, may_drop: bool = True) -> DataDir:
        repairs = Repairs()
        try:
            data = absolute_paths(read_data_dir(directory, repairs, labelled, may_drop), repairs)
            return open_ends(data, args.resample, args.allow_pipes)
        finally:
            for line in repairs.lines():
                print(f"repaired: {line}", flush=True)

    train = read(args.train, labelled=not args.unlabelled)
    others = {"valid": read(args.valid)} if args.valid is not None else {}
    others.update({name: read(path, may_drop=False) for name, path in tests.items()})
    for other in others.values():
        refuse_shared(train, other)
    chosen = set(train.speakers)
    if args.valid is None:
        chosen, held_out = split_by_speaker(train, args.valid_share)
        write_data_tables(args.output / "valid", train, held_out)
        print(f"{args.output}/valid: {len(held_out)} utterances of speakers kept apart from {args.train}")
    write_data_tables(args.output / "train", train, chosen)
    print(f"{args.output}/train: {len(chosen)} utterances of {args.train}")
    for name, other in others.items():
        write_data_tables(args.output / name, other, set(other.speakers))
        print(f"{args.output}/{name}: {len(other.speakers)} utterances of {other.path}")


if __name__ == "__main__":
    main()
