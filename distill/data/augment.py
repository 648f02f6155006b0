"""Changes to training audio that a corpus is made with."""

from __future__ import annotations

import numpy as np

EQUALISER_HZ = (0, 250, 500, 1000, 2000, 4000, 8000)
EQUALISER_DB = 6.0


def equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random gain of +-6 dB at each of EQUALISER_HZ and straight lines between: another microphone, another voice."""
    spectrum = np.fft.rfft(audio)
    frequency = np.linspace(0, 8000, len(spectrum))
    gain_db = np.interp(frequency, EQUALISER_HZ, rng.uniform(-EQUALISER_DB, EQUALISER_DB, len(EQUALISER_HZ)))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), n=len(audio))


def augment(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """16 kHz audio with a random equalisation, a random loudness, from that of a distant to that of a close speaker
    (root mean square 0.005 to 0.15), and in half of the cases white noise at 10 to 40 dB SNR. Test audio keeps the
    loudness it was recorded with, so training must have heard it.
    """
    audio = equalise(audio, rng)
    audio = audio / (np.sqrt(np.mean(audio**2)) + 1e-5) * 10 ** rng.uniform(-2.3, -0.8)
    if rng.random() < 0.5:
        noise = rng.standard_normal(len(audio)) * 10 ** (-rng.uniform(10, 40) / 20)
        audio = audio + noise * np.sqrt(np.mean(audio**2))
    return audio.astype(np.float32)
