"""The level of training audio, to which the copied CNN of a teacher with normalised input is scaled."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from distill.training.distill_task import audio_level


def test_the_level_is_the_geometric_mean_over_utterances(tmp_path):
    lines = []
    for number, level in enumerate((0.02, 0.5)):
        tone = level * np.sqrt(2) * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
        soundfile.write(tmp_path / f"{number}.wav", tone, 16000, subtype="FLOAT")
        lines.append(f"u{number} {tmp_path}/{number}.wav\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    streams = [(str(tmp_path / "text"), "text", "text"), (str(tmp_path / "wav.scp"), "speech", "sound")]
    args = SimpleNamespace(train_data_path_and_name_and_type=streams)
    assert audio_level(args) == pytest.approx(0.1, rel=1e-3)  # sqrt(0.02 * 0.5)
