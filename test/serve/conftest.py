"""A tiny streaming student, saved as a training saves it."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_networks import CHANNELS, student

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "student_stream"
    directory.mkdir()
    conf = {
        "front_end_conf": {"channels": list(CHANNELS)},
        "width": 32,
        "layers": 3,
        "heads": 2,
        "ffn": 48,
        "kernel": 7,
    }
    config = {
        "network": "student",
        "network_conf": conf,
        "token_list": TOKENS,
        "token_type": "char",
        "chunk_conf": {"chunk_ms": [160, 960], "left_ms": 2000},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    weights = {f"network.{key}": value for key, value in student().state_dict().items()}
    torch.save(weights, directory / "model.pth")
    return directory
