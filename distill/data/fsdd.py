"""Connected digits from the Free Spoken Digit Dataset: recordings of single digits, joined into utterances."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from distill.audio import SAMPLE_RATE
from distill.data.augment import augment
from distill.data.write_dir import Utterance, write_sets
from distill.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDED_RATE = 8000
TEST, TRAIN, VALID = range(0, 5), range(5, 45), range(45, 50)  # the index in {digit}_{speaker}_{index}.wav
MAX_DIGITS = 7
# Training has many short utterances: from them a network without pre-training learns which sound is which word.
TRAIN_DIGITS = (0.40, 0.20, 0.10, 0.08, 0.08, 0.07, 0.07)  # shares of utterances of 1, 2, ... 7 digits
PAUSE_S = (0.03, 0.30)
SPEED = 0.25  # training utterances are up to e^0.25 times faster or slower, with their pitch
TIGHT = 0.3  # share of training utterances without a pause before and after, as the recordings of test_isolated are

Recordings = dict[tuple[str, int, int], np.ndarray]  # speaker, digit, index -> audio at 8 kHz


def read_recordings(directory: Path) -> Recordings:
    """Read FSDD's ``recordings`` folder, which must have 50 recordings of each digit by each speaker."""
    paths = sorted((directory / "recordings").glob("[0-9]_*_*.wav"))
    if not paths:
        raise UserError(f"{directory}: holds no recordings/*.wav; give FSDD's directory with --fsdd_dir")
    recordings: Recordings = {}
    for path in paths:
        match = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
        if match is None:
            continue
        digit, speaker, index = match.groups()
        try:
            audio, rate = soundfile.read(path, dtype="float32")
        except soundfile.LibsndfileError:
            raise UserError(f"{path}: cannot be read as audio; fetch the file again") from None
        if rate != RECORDED_RATE or audio.ndim != 1:
            raise UserError(f"{path}: {rate} Hz, {audio.ndim} dimensions; FSDD is 8 kHz mono, fetch the file again")
        recordings[speaker, int(digit), int(index)] = audio
    for speaker in {speaker for speaker, _, _ in recordings}:
        for digit in range(10):
            for take in range(50):
                if (speaker, digit, take) not in recordings:
                    name = f"{digit}_{speaker}_{take}.wav"
                    raise UserError(f"{directory}/recordings/{name}: not found; fetch the whole of FSDD again")
    return recordings


def splice(parts: list[np.ndarray], rng: np.random.Generator, speed: float = 1.0, tight: bool = False) -> np.ndarray:
    """Join 8 kHz recordings with random pauses of faint noise between them, and resample to 16 kHz.

    Args:
        parts: (N,) samples of each recording.
        rng: draws the pauses.
        speed: factor by which the result is faster.
        tight: whether there is no pause before and after.
    """

    def pause() -> np.ndarray:
        return 1e-3 * rng.standard_normal(int(rng.uniform(*PAUSE_S) * RECORDED_RATE)).astype(np.float32)

    pieces = [pause()]
    for part in parts:
        pieces += [part, pause()]
    if tight:
        pieces = pieces[1:-1]
    return soxr.resample(np.concatenate(pieces), RECORDED_RATE * speed, SAMPLE_RATE)


def connected(
    name: str,
    recordings: Recordings,
    speakers: list[str],
    indices: range,
    count: int,
    seed: int,
    training: bool = False,
) -> Iterator[Utterance]:
    """Yield ``count`` joined utterances of 1 to 7 digits, one speaker each, speakers in turn.

    Args:
        name: of the set; part of the ids, and of the random seed.
        recordings: all of FSDD.
        speakers: whose recordings are used.
        indices: which recordings of each digit are used.
        count: number of utterances.
        seed: of everything random.
        training: whether lengths, speeds, pauses, loudness and noise vary as for training.
    """
    for number in tqdm(range(count), desc=name, unit="utt", mininterval=1):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        speaker = speakers[number % len(speakers)]
        if training:
            length = int(rng.choice(MAX_DIGITS, p=TRAIN_DIGITS)) + 1
        else:
            length = int(rng.integers(1, MAX_DIGITS + 1))
        digits = rng.integers(0, 10, length)
        parts = [recordings[speaker, int(digit), int(rng.choice(indices))] for digit in digits]
        if training:
            speed, tight = float(np.exp(rng.uniform(-SPEED, SPEED))), rng.random() < TIGHT
            audio = augment(splice(parts, rng, speed, tight), rng)
        else:
            audio = splice(parts, rng)
        text = " ".join(DIGITS[digit] for digit in digits)
        yield Utterance(f"{speaker}-{name}-{number:05d}", speaker, text, audio)


def isolated(name: str, recordings: Recordings, speakers: list[str], indices: range) -> Iterator[Utterance]:
    """Yield every recording alone, unchanged but for the sample rate."""
    for (speaker, digit, index), audio in recordings.items():
        if speaker in speakers and index in indices:
            resampled = soxr.resample(audio, RECORDED_RATE, SAMPLE_RATE)
            yield Utterance(f"{speaker}-{name}-{digit}-{index:02d}", speaker, DIGITS[digit], resampled)


def prepare(
    fsdd_dir: Path,
    heldout_speaker: str,
    data: Path,
    wav: Path,
    num_train: int,
    num_valid: int,
    num_test: int,
    seed: int,
) -> None:
    """Write the sets train, valid, test, test_isolated and test_unseen, and print a line for each.

    Args:
        fsdd_dir: FSDD's directory, with the folder recordings.
        heldout_speaker: whose recordings are in test_unseen alone.
        data: directory of the data directories.
        wav: directory of the audio.
        num_train: utterances of train.
        num_valid: utterances of valid.
        num_test: utterances of test and of test_unseen.
        seed: of everything random.
    """
    recordings = read_recordings(fsdd_dir)
    speakers = sorted({speaker for speaker, _, _ in recordings})
    if heldout_speaker not in speakers:
        raise UserError(f"--heldout_speaker {heldout_speaker}: must be one of {', '.join(speakers)}")
    seen, unseen = [s for s in speakers if s != heldout_speaker], [heldout_speaker]
    sets = {
        "train": connected("train", recordings, seen, TRAIN, num_train, seed, training=True),
        "valid": connected("valid", recordings, seen, VALID, num_valid, seed),
        "test": connected("test", recordings, seen, TEST, num_test, seed),
        "test_isolated": isolated("test_isolated", recordings, seen, TEST),
        "test_unseen": connected("test_unseen", recordings, unseen, range(50), num_test, seed),
    }
    write_sets(data, wav, sets)
