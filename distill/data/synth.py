"""A corpus of spoken commands, synthesised with the espeak-ng of the PyPI package espeakng-loader: nothing to download.

    python -m distill.data.synth --data data --wav data/local/wav

makes data/train, data/valid and data/test, each with speakers that the other two do not have; the accents are the same.
The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from tqdm import tqdm

from distill.data.augment import augment
from distill.data.kaldi_dir import SAMPLE_RATE, Utterance, write_data_dir
from distill.errors import UserError, cli

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
# f2, f3 and f5 breathe at random, differently at every run
TRAIN_SPEAKERS = (
    *(
        "f1",
        "anika",
        "f4",
        "m1",
        "m3",
        "m4",
        "m7",
        "Andy",
        "Annie",
        "Mike",
        "linda",
        "steph",
        "Alex",
        "Andrea",
        "Diogo",
    ),
    *("Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Nguyen", "Reed", "adam", "announcer", "antonio"),
    *(
        "aunty",
        "benjamin",
        "boris",
        "caleb",
        "ed",
        "grandma",
        "grandpa",
        "gustave",
        "ian",
        "iven",
        "john",
        "kaukovalta",
    ),
    *("klatt", "klatt2", "klatt5", "m5", "m8", "marcelo", "michel", "miguel", "mike2", "norbert", "pablo", "paul"),
    *("pedro", "quincy", "rob", "sandro", "shelby", "steph3", "travis", "victor", "zac"),
)
VALID_SPEAKERS = ("Alicia", "klatt3", "max", "iven2", "edward", "steph2")
TEST_SPEAKERS = ("Denis", "m2", "m6", "Michael", "belinda", "david")
WORDS_PER_MINUTE = (160, 220)  # on the brisk side, so that training is quick
PITCH = (30, 70)  # espeak-ng's scale, 50 being the voice's own
SPEED = 0.15  # training audio is played up to e^0.15 times faster or slower, which shifts its formants as well

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow")
DEVICES = ("lamp", "radio", "heater", "fan")
ROOMS = ("kitchen", "bedroom", "garage")
NAMES = ("anna", "robert", "maria", "victor")
SIDES = ("left", "right", "up", "down")


class Voice(NamedTuple):
    """An accent and a speaker of espeak-ng (its voice and variant)."""

    accent: str
    speaker: str

    @property
    def name(self) -> str:
        """Speaker id of the data directory."""
        return f"{self.accent}_{self.speaker}".lower().replace("-", "")


def voices(speakers: tuple[str, ...]) -> list[Voice]:
    """Two accents for each speaker, all accents as often."""
    return [Voice(ACCENTS[(2 * n + k) % len(ACCENTS)], speaker) for n, speaker in enumerate(speakers) for k in range(2)]


def sentence(rng: np.random.Generator) -> str:
    """A random command of 2 to 8 words."""

    def one(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    def perhaps(words: str) -> str:
        return words if rng.random() < 0.4 else ""

    def numbers(least: int, most: int) -> str:
        return " ".join(one(DIGITS) for _ in range(rng.integers(least, most + 1)))

    room = perhaps(f"in the {one(ROOMS)}")
    commands: tuple[Callable[[], str], ...] = (
        lambda: f"turn {one(('on', 'off'))} the {perhaps(one(COLOURS))} {one(DEVICES)} {room}",
        lambda: f"{one(('open', 'close'))} the {one(('door', 'window'))} {room}",
        lambda: f"set the {one(DEVICES)} to {numbers(1, 2)}",
        lambda: f"call {one(NAMES)} {perhaps(f'and {one(NAMES)}')}",
        lambda: f"call {numbers(2, 4)}",
        lambda: f"play {one(('song', 'channel'))} {numbers(1, 3)}",
        lambda: f"move {one(SIDES)} {numbers(1, 2)}",
    )
    return " ".join(commands[rng.integers(len(commands))]().split())


class Synthesiser:
    """espeak-ng through ctypes.

    What it returns depends on what the process said before, so each utterance is said by a fork of this one, which
    never says anything itself.
    """

    RATE, PITCH = 1, 3  # espeak_PARAMETER
    SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback before espeak_Synth returns
    UTF8 = 1

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("espeakng-loader is not installed; pip install espeakng-loader==0.2.4") from None
        self.data = Path(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = int(self.library.espeak_Initialize(self.SYNCHRONOUS, 0, str(self.data).encode(), 0))
        if self.rate <= 0:
            raise UserError(f"{self.data}: espeak-ng cannot start from it; install espeakng-loader==0.2.4 again")

    def __call__(self, text: str, voice: Voice, words_per_minute: int, pitch: int) -> np.ndarray:
        """Speech as float32 (N,) in [-1, 1] at ``rate`` Hz, silence trimmed to 50 ms before and after."""
        if not (self.data / "voices" / "!v" / voice.speaker).is_file():
            raise UserError(f"{self.data}: has no speaker {voice.speaker}")  # espeak-ng would take another one silently
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                with open(writing, "wb") as stream:
                    stream.write(self._say(text, voice, words_per_minute, pitch))
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading, "rb") as stream:
            samples = np.frombuffer(stream.read(), dtype=np.int16).astype(np.float32) / 32768
        _, status = os.waitpid(child, 0)
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        if status != 0 or len(loud) == 0:
            raise UserError(f"espeak-ng said nothing for {text!r} as {voice.accent}+{voice.speaker}")
        margin = self.rate // 20
        return samples[max(0, loud[0] - margin) : loud[-1] + margin]

    def _say(self, text: str, voice: Voice, words_per_minute: int, pitch: int) -> bytes:
        library, pieces = self.library, []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        def receive(samples, count, _events) -> int:
            if samples and count > 0:
                pieces.append(ctypes.string_at(samples, 2 * count))
            return 0

        library.espeak_SetSynthCallback(receive)
        if library.espeak_SetVoiceByName(f"{voice.accent}+{voice.speaker}".encode()) != 0:
            return b""
        library.espeak_SetParameter(self.RATE, words_per_minute, 0)
        library.espeak_SetParameter(self.PITCH, pitch, 0)
        encoded = text.encode() + b"\0"
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, self.UTF8, None, None)
        return b"".join(pieces)


def utterances(
    name: str, say: Synthesiser, speakers: list[Voice], count: int, seed: int, training: bool = False
) -> Iterator[Utterance]:
    """``count`` random commands, voices in turn, each with its own speed and pitch."""
    tqdm.monitor_interval = 0  # its thread would be one too many for fork
    for number in tqdm(range(count), desc=name, unit="utt", mininterval=1):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        voice, text = speakers[number % len(speakers)], sentence(rng)
        speech = say(text, voice, int(rng.integers(*WORDS_PER_MINUTE)), int(rng.integers(*PITCH)))
        speed = float(np.exp(rng.uniform(-SPEED, SPEED))) if training else 1.0
        audio = soxr.resample(speech, say.rate * speed, SAMPLE_RATE)
        if training:
            audio = augment(audio, rng)
        yield Utterance(f"{voice.name}-{name}-{number:05d}", voice.name, text, audio)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data directories go")
    parser.add_argument("--wav", type=Path, default=Path("data/local/wav"), help="where the audio goes")
    parser.add_argument("--num_train", type=int, default=3000, help="training utterances (default: 3000)")
    parser.add_argument("--num_valid", type=int, default=240, help="(default: 240)")
    parser.add_argument("--num_test", type=int, default=240, help="(default: 240)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    say = Synthesiser()
    sets = {
        "train": utterances("train", say, voices(TRAIN_SPEAKERS), args.num_train, args.seed, training=True),
        "valid": utterances("valid", say, voices(VALID_SPEAKERS), args.num_valid, args.seed),
        "test": utterances("test", say, voices(TEST_SPEAKERS), args.num_test, args.seed),
    }
    for name, made in sets.items():
        count = write_data_dir(args.data / name, args.wav / name, made)
        print(f"{args.data / name}: {count} utterances")


if __name__ == "__main__":
    main()
