"""Augmentation of the training audio of corpora that are made here."""

from __future__ import annotations

import numpy as np

EQUALISER_HZ = (0, 250, 500, 1000, 2000, 4000, 8000)
EQUALISER_DB = 6.0


def equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Filter (N,) samples with a random gain of up to +-6 dB at each of EQUALISER_HZ, linearly interpolated."""
    spectrum = np.fft.rfft(audio)
    frequency = np.linspace(0, 8000, len(spectrum))
    gain_db = np.interp(frequency, EQUALISER_HZ, rng.uniform(-EQUALISER_DB, EQUALISER_DB, len(EQUALISER_HZ)))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), n=len(audio))


def augment(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Augment (N,) samples at 16 kHz.

    With a random filter, a random loudness (root mean square 0.005 to 0.15, from a distant to a close speaker, as test
    audio keeps the loudness of its recording), and for half of the utterances white noise at 10 to 40 dB SNR.
    """
    audio = equalise(audio, rng)
    audio = audio / (np.sqrt(np.mean(audio**2)) + 1e-5) * 10 ** rng.uniform(-2.3, -0.8)
    if rng.random() < 0.5:
        noise = rng.standard_normal(len(audio)) * 10 ** (-rng.uniform(10, 40) / 20)
        audio = audio + noise * np.sqrt(np.mean(audio**2))
    return audio.astype(np.float32)
