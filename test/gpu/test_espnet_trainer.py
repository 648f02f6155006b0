"""ESPnet's own trainer on the device: a student with an online teacher, stopped after an epoch and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_training import HERTZ, STUDENT, TEACHER, TOKENS, changed

from distill.lfmmi import DenominatorGraph

pytestmark = pytest.mark.gpu


def write_data(root: Path) -> None:
    """Tones as words: wav.scp, text, and the shapes that ESPnet collects, of a training and a validation set."""
    rng = np.random.default_rng(0)
    lines = []
    for part, count in (("train", 8), ("valid", 3)):
        (root / part).mkdir()
        tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "speech_shape": [], "text_shape": []}
        for number in range(count):
            key, path = f"{part}{number}", root / part / f"{number}.wav"
            words = [list(HERTZ)[k] for k in rng.integers(0, 3, rng.integers(1, 4))]
            time = np.arange(4000 + 160 * int(rng.integers(0, 9))) / 16000
            audio = np.concatenate([0.3 * np.sin(2 * np.pi * HERTZ[word] * time) for word in words])
            soundfile.write(path, audio + 0.01 * rng.normal(size=len(audio)), 16000)
            rows = (path, " ".join(words), len(audio), len(words))
            for lines_of, row in zip(tables.values(), rows, strict=True):
                lines_of.append(f"{key} {row}")
            lines.append([TOKENS.index(word) for word in words])
        for name, table in tables.items():
            (root / part / name).write_text("\n".join(table) + "\n")
    (root / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    DenominatorGraph.from_text(lines, 2, len(TOKENS)).save(root / "den.npz")


def train(root: Path, device: torch.device, name: str, config: dict, *more: str) -> dict[int, dict]:
    """Train as the recipe does; returns the terms of every epoch."""
    from distill.bin.train import main

    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    data = [
        word
        for part in ("train", "valid")
        for word in (
            *(f"--{part}_data_path_and_name_and_type", f"{root}/{part}/wav.scp,speech,sound"),
            *(f"--{part}_data_path_and_name_and_type", f"{root}/{part}/text,text,text"),
            *(f"--{part}_shape_file", f"{root}/{part}/speech_shape"),
            *(f"--{part}_shape_file", f"{root}/{part}/text_shape"),
        )
    ]
    main(
        [
            *("--config", str(path), "--output_dir", str(root / name), "--token_list", str(root / "tokens.txt")),
            *("--token_type", "word", "--bpemodel", "none", "--cleaner", "none", "--g2p", "none"),
            *("--num_workers", "0", "--use_matplotlib", "false", "--use_tensorboard", "false", "--resume", "true"),
            *("--log_interval", "1", "--batch_type", "unsorted", "--batch_size", "4", "--keep_nbest_models", "1"),
            *("--ngpu", str(int(device.type == "cuda")), "--distill_conf", f"graph={root}/den.npz", *data, *more),
        ]
    )
    return torch.load(root / name / "checkpoint.pth", weights_only=False)["reporter"]["stats"]


def test_a_training_that_is_resumed_equals_one_that_was_not_stopped(device, tmp_path):
    write_data(tmp_path)
    teacher = train(tmp_path, device, "teacher", TEACHER, "--max_epoch", "1")
    assert np.isfinite(teacher[1]["valid"]["loss"])
    config = changed(STUDENT, distill_conf={"target": "pseudo", "weight_ctc": 0.5})
    options = ("--teacher", str(tmp_path / "teacher"))
    whole = train(tmp_path, device, "whole", config, *options, "--max_epoch", "2")
    first = train(tmp_path, device, "resumed", config, *options, "--max_epoch", "1")
    assert set(first) == {1}
    resumed = train(tmp_path, device, "resumed", config, *options, "--max_epoch", "2")
    assert set(resumed) == {1, 2}
    rel = 1e-3 if device.type == "cpu" else 1e-2  # a GPU adds up in another order each time, and in bfloat16
    for term in ("loss", "loss_hidden", "loss_logits", "loss_mmi", "loss_ctc"):
        assert resumed[2]["valid"][term] == pytest.approx(whole[2]["valid"][term], rel=rel), term
    assert whole[2]["valid"]["loss"] < whole[1]["valid"]["loss"]
