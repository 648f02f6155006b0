"""LibriSpeech's and speechocean762's recordings as archives of Ogg Opus, to be trained on as one corpus in memory.

    python utils/gpu_data.py CORPORA OUTPUT --limits 46 53 53

reads CORPORA/librispeech/LibriSpeech and CORPORA/speechocean762 as they unpack (audio may be Ogg Opus of the same
name) and writes OUTPUT/data-1/corpus.zip and so on, none larger than its limit in MB. The first ones hold all of the
validation and test sets; training utterances follow in random order, so that any first archives are a corpus.

Sets: librispeech_train, _valid and _test by speaker, whatever part the speaker is of; speechocean_train, _valid (the
last 20 speakers of its train) and _test.
"""

from __future__ import annotations

import argparse
import io
import random
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.errors import UserError, cli

LIBRISPEECH_TEST = "121 237 260 672 908 1089 1188 1284".split()
LIBRISPEECH_VALID = "1580 2300".split()
SPEECHOCEAN_VALID = 20  # last speakers of its training set
SUFFIXES = (".opus", ".flac", ".wav", ".WAV")


class Utterance(NamedTuple):
    """A recording before it is packed."""

    data_set: str
    key: str
    path: Path
    text: str


def audio_file(stem: Path) -> Path:
    """The recording of this name without a suffix."""
    for suffix in SUFFIXES:
        if (path := stem.with_suffix(suffix)).is_file():
            return path
    raise UserError(f"{stem}: no recording of this name ({', '.join(SUFFIXES)}); unpack the corpus again")


def librispeech(root: Path) -> Iterator[Utterance]:
    """Utterances of all parts below ``root``."""
    transcripts = sorted(root.glob("*/*/*/*.trans.txt"))
    if not transcripts:
        raise UserError(f"{root}: holds no PART/SPEAKER/CHAPTER/*.trans.txt; give LibriSpeech's own tree")
    for transcript in transcripts:
        speaker = transcript.parent.parent.name
        part = "test" if speaker in LIBRISPEECH_TEST else "valid" if speaker in LIBRISPEECH_VALID else "train"
        for line in transcript.read_text(encoding="utf-8").splitlines():
            key, text = line.split(maxsplit=1)
            yield Utterance(f"librispeech_{part}", key, audio_file(transcript.parent / key), text)


def speechocean(root: Path) -> Iterator[Utterance]:
    """Utterances of both parts."""
    for part in ("train", "test"):
        tables = {}
        for name in ("text", "wav.scp", "utt2spk"):
            if not (root / part / name).is_file():
                raise UserError(f"{root / part / name}: not found; give speechocean762's own tree")
            lines = (root / part / name).read_text(encoding="utf-8").splitlines()
            tables[name] = dict(line.split(maxsplit=1) for line in lines)
        last = sorted(set(tables["utt2spk"].values()))[-SPEECHOCEAN_VALID:] if part == "train" else []
        for key, text in tables["text"].items():
            name = "valid" if tables["utt2spk"][key] in last else part
            stem = (root / tables["wav.scp"][key]).with_suffix("")
            yield Utterance(f"speechocean_{name}", key, audio_file(stem), text.strip())


def opus(path: Path) -> bytes:
    """The recording as Ogg Opus; as it is, if it is."""
    if path.suffix == ".opus":
        return path.read_bytes()
    import soundfile

    samples, rate = soundfile.read(path, dtype="int16")
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="OGG", subtype="OPUS")
    return stream.getvalue()


def pack(utterances: Sequence[Utterance], output: Path, limits: Sequence[int]) -> list[Path]:
    """Write archives of at most ``limits`` bytes each, and return those that are needed.

    Raises:
        UserError: the limits are too low for all.
    """
    held_out = [u for u in utterances if not u.data_set.endswith("_train")]
    train = [u for u in utterances if u.data_set.endswith("_train")]
    random.Random(0).shuffle(train)
    waiting = iter([*held_out, *train])
    utterance = next(waiting, None)
    paths = []
    for number, limit in enumerate(limits, 1):
        path = output / f"data-{number}" / "corpus.zip"
        path.unlink(missing_ok=True)
        if utterance is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        size, texts = 22, []
        with zipfile.ZipFile(path, "w") as archive:  # stored: Opus cannot be compressed
            while utterance is not None:
                name, data = f"{utterance.data_set}/{utterance.key}.opus", opus(utterance.path)
                text = f"{utterance.data_set}/{utterance.key} {utterance.text}\n"
                size += len(data) + len(text) + 2 * len(name) + 76 + 200 * (not texts)
                if size > limit:
                    break
                archive.writestr(name, data)
                texts.append(text)
                utterance = next(waiting, None)
            archive.writestr("text", "".join(texts))
        paths.append(path)
    if utterance is not None:
        left = 1 + sum(1 for _ in waiting)
        raise UserError(f"--limits: too low, {left} of {len(utterances)} utterances are left; give another archive")
    return paths


class Recordings(NamedTuple):
    """A data set in memory: ids, texts, and (n,) int16 samples at 16 kHz of each utterance."""

    keys: list[str]
    texts: list[str]
    audio: list[np.ndarray]

    @property
    def seconds(self) -> float:
        return sum(map(len, self.audio)) / 16000


def load(archives: Sequence[Path], threads: int, limit: int | None = None) -> dict[str, Recordings]:
    """Data sets by name, from whatever archives there are; of each at most ``limit`` utterances, if that is given."""
    import soundfile

    sets: dict[str, Recordings] = {}
    jobs: list[tuple[str, str, str, bytes]] = []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("text").decode().splitlines():
                name, text = line.split(maxsplit=1)
                data_set, key = name.split("/")
                if limit is None or sum(job[0] == data_set for job in jobs) < limit:
                    jobs.append((data_set, key, text, archive.read(f"{name}.opus")))
    if not jobs:
        raise UserError("no archive of recordings; make them with utils/gpu_data.py")
    with ThreadPoolExecutor(threads) as pool:
        audio = pool.map(lambda job: soundfile.read(io.BytesIO(job[3]), dtype="int16")[0], jobs)
        for (data_set, key, text, _), samples in zip(jobs, audio, strict=True):
            recordings = sets.setdefault(data_set, Recordings([], [], []))
            recordings.keys.append(key)
            recordings.texts.append(text)
            recordings.audio.append(samples)
    return sets


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--limits", type=float, nargs="+", default=[60.0], help="MB of each archive (default: 60)")
    args = parser.parse_args(argv)
    root = args.corpora
    utterances = [*librispeech(root / "librispeech/LibriSpeech"), *speechocean(root / "speechocean762")]
    for path in pack(utterances, args.output, [int(1e6 * limit) for limit in args.limits]):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
