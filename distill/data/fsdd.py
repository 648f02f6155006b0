"""Connected digits from the Free Spoken Digit Dataset: real recordings of single digits, spliced into utterances.

    python -m distill.data.fsdd --fsdd_dir DIR --heldout_speaker lucas --data data --wav data/local/wav

makes data/train, valid, test (the recordings that FSDD's authors set apart for each, other speakers), test_isolated
(every test recording alone) and test_unseen (any recording of the speaker held out). The same seed gives the same
bytes.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from distill.data.augment import augment
from distill.data.kaldi_dir import SAMPLE_RATE, Utterance, write_data_dir
from distill.errors import UserError, cli

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDED_RATE = 8000
TEST, TRAIN, VALID = range(0, 5), range(5, 45), range(45, 50)  # the index in {digit}_{speaker}_{index}.wav
MAX_DIGITS = 7
# Training has many short utterances: a network from scratch learns from them which sound is which word.
TRAIN_DIGITS = (0.40, 0.20, 0.10, 0.08, 0.08, 0.07, 0.07)  # shares of utterances of 1, 2, ... 7 digits
PAUSE_S = (0.03, 0.30)
SPEED = 0.25  # training utterances are played up to e^0.25 times faster or slower, which shifts their pitch as well
TIGHT = 0.3  # share of training utterances without a pause before and after, as the recordings of test_isolated are

Recordings = dict[tuple[str, int, int], np.ndarray]  # speaker, digit, index -> audio at 8 kHz


def read_recordings(directory: Path) -> Recordings:
    """All recordings of FSDD's ``recordings`` folder: 50 of each digit by each speaker."""
    paths = sorted((directory / "recordings").glob("[0-9]_*_*.wav"))
    if not paths:
        raise UserError(f"{directory}: holds no recordings/*.wav; give FSDD's directory with --fsdd_dir")
    recordings: Recordings = {}
    for path in paths:
        named = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
        if named is None:
            continue
        digit, speaker, index = named.groups()
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
    """Join recordings with random pauses of faint noise between and, unless ``tight``, before and after, at 16 kHz."""

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
    """``count`` spliced utterances of 1 to 7 digits, one speaker each, speakers in turn."""
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
    """Every recording alone, as it is."""
    for (speaker, digit, index), audio in recordings.items():
        if speaker in speakers and index in indices:
            resampled = soxr.resample(audio, RECORDED_RATE, SAMPLE_RATE)
            yield Utterance(f"{speaker}-{name}-{digit}-{index:02d}", speaker, DIGITS[digit], resampled)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd_dir", type=Path, required=True, help="with the folder recordings")
    parser.add_argument("--heldout_speaker", default="lucas", help="whose recordings are for test_unseen alone")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data directories go")
    parser.add_argument("--wav", type=Path, default=Path("data/local/wav"), help="where the audio goes")
    parser.add_argument("--num_train", type=int, default=6000, help="training utterances (default: 6000)")
    parser.add_argument("--num_valid", type=int, default=200, help="(default: 200)")
    parser.add_argument("--num_test", type=int, default=300, help="of test and of test_unseen (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    recordings = read_recordings(args.fsdd_dir)
    everybody = sorted({speaker for speaker, _, _ in recordings})
    if args.heldout_speaker not in everybody:
        raise UserError(f"--heldout_speaker {args.heldout_speaker}: must be one of {', '.join(everybody)}")
    seen, unseen = [s for s in everybody if s != args.heldout_speaker], [args.heldout_speaker]
    sets = {
        "train": connected("train", recordings, seen, TRAIN, args.num_train, args.seed, training=True),
        "valid": connected("valid", recordings, seen, VALID, args.num_valid, args.seed),
        "test": connected("test", recordings, seen, TEST, args.num_test, args.seed),
        "test_isolated": isolated("test_isolated", recordings, seen, TEST),
        "test_unseen": connected("test_unseen", recordings, unseen, range(50), args.num_test, args.seed),
    }
    for name, utterances in sets.items():
        count = write_data_dir(args.data / name, args.wav / name, utterances)
        print(f"{args.data / name}: {count} utterances")


if __name__ == "__main__":
    main()
