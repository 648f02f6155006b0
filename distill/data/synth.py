"""A corpus of spoken commands, synthesised with the espeak-ng of the PyPI package espeakng-loader."""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from tqdm import tqdm

from distill.audio import SAMPLE_RATE
from distill.data.augment import augment
from distill.data.write_dir import Utterance, write_sets
from distill.errors import UserError

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
# Without f2, f3, f5, Alicia, sandro and victor, whose breathing differs from run to run
TRAIN_SPEAKERS = tuple(
    (
        "f1 anika f4 m1 m3 m4 m7 Andy Annie Mike linda steph Alex Andrea Diogo Gene Henrique Hugo Jacky Lee Marco "
        "Mario Nguyen Reed adam announcer antonio aunty benjamin boris caleb ed grandma grandpa gustave ian iven "
        "john kaukovalta klatt klatt2 klatt5 m5 m8 marcelo michel miguel mike2 norbert pablo paul pedro quincy rob "
        "shelby steph3 travis klatt4 klatt6 zac"
    ).split()
)
VALID_SPEAKERS = ("robert", "klatt3", "max", "iven2", "edward", "steph2")
TEST_SPEAKERS = ("Denis", "m2", "m6", "Michael", "belinda", "david")
WORDS_PER_MINUTE = (160, 220)  # on the brisk side, so that training is quick
PITCH = (30, 70)  # on espeak-ng's scale, where 50 is the voice's normal pitch
PAUSE_S = 0.6  # longest pause before and after the words
PAUSE_DB = (-100.0, -60.0)  # level of the faint noise of a pause, in dB of full scale
TIGHT = 0.4  # share of utterances without a pause before or after the words
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
    """Two accents for each speaker, so that all accents are equally frequent."""
    return [Voice(ACCENTS[(2 * n + k) % len(ACCENTS)], speaker) for n, speaker in enumerate(speakers) for k in range(2)]


def sentence(rng: np.random.Generator) -> str:
    """Draw a command of 2 to 8 words."""

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

    Its output depends on what the process synthesised before. So each utterance is synthesised in a fork of this
    process, which never synthesises anything itself.
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
        """Synthesise (N,) float32 samples in [-1, 1] at ``rate`` Hz, with 50 ms of silence before and after."""
        if not (self.data / "voices" / "!v" / voice.speaker).is_file():
            raise UserError(f"{self.data}: has no speaker {voice.speaker}")  # espeak-ng would silently take another
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                with open(writing, "wb") as stream:
                    stream.write(self._synthesise(text, voice, words_per_minute, pitch))
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading, "rb") as stream:
            samples = np.frombuffer(stream.read(), dtype=np.int16).astype(np.float32) / 32768
        _, status = os.waitpid(child, 0)
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        if status != 0 or len(loud) == 0:
            raise UserError(f"espeak-ng synthesised nothing for {text!r} as {voice.accent}+{voice.speaker}")
        margin = self.rate // 20
        return samples[max(0, loud[0] - margin) : loud[-1] + margin]

    def _synthesise(self, text: str, voice: Voice, words_per_minute: int, pitch: int) -> bytes:
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


def add_pauses(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a pause of up to ``PAUSE_S`` before and after (N,) samples at 16 kHz, with faint noise throughout.

    A share ``TIGHT`` of the audio is left as it is: a network trained from scratch finds words in it sooner.
    """
    if rng.random() < TIGHT:
        return audio
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(0, PAUSE_S, 2))
    audio = np.pad(audio, (before, after))
    return audio + rng.standard_normal(len(audio)) * 10 ** (rng.uniform(*PAUSE_DB) / 20)


@cache
def synthesiser() -> Synthesiser:
    """The synthesiser of this process."""
    return Synthesiser()


def synthesise_utterance(number: int, name: str, speakers: list[Voice], seed: int, training: bool) -> Utterance:
    """A random command by one of the voices, which take turns, with random speed and pitch.

    Args:
        number: of the utterance in its set.
        name: of the set; part of the id, and of the random seed.
        speakers: the voices.
        seed: of everything random.
        training: whether speed, loudness and noise vary as for training.
    """
    synthesise = synthesiser()
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    voice, text = speakers[number % len(speakers)], sentence(rng)
    speech = synthesise(text, voice, int(rng.integers(*WORDS_PER_MINUTE)), int(rng.integers(*PITCH)))
    speed = float(np.exp(rng.uniform(-SPEED, SPEED))) if training else 1.0
    audio = soxr.resample(speech, synthesise.rate * speed, SAMPLE_RATE)
    audio = add_pauses(audio, rng)
    if training:
        audio = augment(audio, rng)
    return Utterance(f"{voice.name}-{name}-{number:05d}", voice.name, text, audio.astype(np.float32))


def utterances(
    name: str, pool: ProcessPoolExecutor, speakers: list[Voice], count: int, seed: int, training: bool = False
) -> Iterator[Utterance]:
    """Yield ``count`` utterances of :func:`synthesise_utterance` in order, computed by the processes of a pool."""
    make = partial(synthesise_utterance, name=name, speakers=speakers, seed=seed, training=training)
    synthesised = pool.map(make, range(count), chunksize=8)
    try:
        yield from tqdm(synthesised, total=count, desc=name, unit="utt", mininterval=1)
    except BrokenProcessPool:
        raise UserError(f"{name}: a process that synthesises was killed; is there enough memory?") from None


def prepare(data: Path, wav: Path, num_train: int, num_valid: int, num_test: int, seed: int) -> None:
    """Write the sets train, valid and test of so many utterances, audio in ``wav``, and print a line for each.

    No two of the sets share a speaker; their accents are the same. The same seed gives the same bytes.
    """
    synthesiser()  # what is missing is reported here, and not by each process; they inherit it
    tqdm.monitor_interval = 0  # without its thread, which fork would not copy
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("fork")) as pool:
        sets = {
            "train": utterances("train", pool, voices(TRAIN_SPEAKERS), num_train, seed, training=True),
            "valid": utterances("valid", pool, voices(VALID_SPEAKERS), num_valid, seed),
            "test": utterances("test", pool, voices(TEST_SPEAKERS), num_test, seed),
        }
        try:
            write_sets(data, wav, sets)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
