"""Changes to training audio that a corpus is made with."""

from __future__ import annotations

import numpy as np


def augment(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random loudness, and in half of the cases white noise at 10 to 40 dB SNR."""
    audio = audio / (np.sqrt(np.mean(audio**2)) + 1e-5) * 10 ** rng.uniform(-1.5, -0.9)
    if rng.random() < 0.5:
        noise = rng.standard_normal(len(audio)) * 10 ** (-rng.uniform(10, 40) / 20)
        audio = audio + noise * np.sqrt(np.mean(audio**2))
    return audio.astype(np.float32)
