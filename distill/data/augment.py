"""Changes to training audio that a corpus is made with."""

from __future__ import annotations

import numpy as np


def augment(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random loudness, from that of a distant to that of a close speaker (root mean square 0.005 to 0.15), and in half
    of the cases white noise at 10 to 40 dB SNR. Test audio keeps the loudness it was recorded with, so training must
    have heard it.
    """
    audio = audio / (np.sqrt(np.mean(audio**2)) + 1e-5) * 10 ** rng.uniform(-2.3, -0.8)
    if rng.random() < 0.5:
        noise = rng.standard_normal(len(audio)) * 10 ** (-rng.uniform(10, 40) / 20)
        audio = audio + noise * np.sqrt(np.mean(audio**2))
    return audio.astype(np.float32)
