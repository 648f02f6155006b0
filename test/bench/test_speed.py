"""Size and speed of a tiny teacher and its students, trained and exported."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TEACHER, VOCAB, speech, student, teacher

from distill.bench import speed
from distill.bin.speed import main
from distill.checkpoints.load import load_network
from distill.export import model as onnx_model

STUDENT = {"front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}


class Sleeper:
    """Takes 20 ms for every piece."""

    streaming, step_ms = True, 160

    def __init__(self):
        self.pieces = []

    def create_stream(self):
        self.pieces.append([])
        return self

    def accept(self, samples):
        self.pieces[-1].append(len(samples))

    def decode(self):
        time.sleep(0.02)

    def finish(self):
        pass


def test_a_stream_is_fed_chunk_by_chunk():
    recognizer = Sleeper()
    took = speed.seconds(recognizer, [np.zeros(6000, np.float32), np.zeros(2560, np.float32)])
    assert recognizer.pieces == [[2560, 2560, 880], [2560]]
    assert took >= 6 * 0.02


@pytest.fixture(scope="module")
def exp(tmp_path_factory) -> Path:
    """teacher, student_stream and two of its exported forms, as a recipe's exp holds them; an utterance in data."""
    exp = tmp_path_factory.mktemp("exp")
    config = {"token_list": [str(i) for i in range(VOCAB)], "token_type": "word"}
    own = {
        "teacher": {"network": "teacher", "network_conf": {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}},
        "student_stream": {"network": "student", "network_conf": STUDENT, "chunk_conf": {"left_ms": 800}},
    }
    for (name, conf), network in zip(own.items(), (teacher(), student()), strict=True):
        (exp / name).mkdir()
        (exp / name / "config.yaml").write_text(yaml.safe_dump({**config, **conf}))
        torch.save({f"network.{key}": x for key, x in network.state_dict().items()}, exp / name / "model.pth")
    network, tokens, config = load_network(exp / "student_stream")
    shapes = onnx_model.shapes_for(network, config, 160, "student_stream")
    step = onnx_model.step_model(network, shapes)
    (exp / "export").mkdir()
    properties = onnx_model.metadata(network, shapes, tokens, "word", 160)
    for model, end in ((step, ".onnx"), (onnx_model.quantized(step), ".int8.onnx")):
        onnx_model.save(model, exp / "export" / f"student_160ms{end}", properties)
    (exp / "data").mkdir()
    soundfile.write(exp / "data/a.wav", speech(16000).numpy(), 16000)
    (exp / "data/wav.scp").write_text(f"a {exp / 'data/a.wav'}\n")
    return exp


def test_rows(exp, capsys):
    output = exp / "bench.json"
    output.write_text('{"latency": [1]}')
    models = [str(exp / "teacher"), str(exp / "student_stream")]
    main(["--models", *models, "--export", str(exp / "export"), "--data_dir", str(exp / "data"),
                "--chunk_ms", "160", "480", "--rounds", "2", "--output", str(output)])  # fmt: skip
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["latency"] == [1]
    rows = written["speed"]
    assert [(row["system"], row["latency_ms"], row["runtime"]) for row in rows] == [
        ("teacher", None, "torch"),
        ("student_stream", 160, "torch"),
        ("student_stream", 480, "torch"),
        ("student_stream", 160, "onnxruntime float32"),
        ("student_stream", 160, "onnxruntime int8"),
    ]
    for row, network in zip(rows, (teacher(), *[student()] * 4), strict=True):
        assert row["params"] == sum(p.numel() for p in network.parameters())
        assert 0 < row["rtf_least"] <= row["rtf"] <= row["rtf_largest"]
    assert all(f"{row['rtf']:.4f}" in printed for row in rows)
    assert rows[1]["model_bytes"] == 4 * rows[1]["params"]
    assert rows[4]["model_bytes"] == (exp / "export/student_160ms.int8.onnx").stat().st_size


def test_what_is_no_export_is_refused(exp, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--models", str(exp / "student_stream"), "--export", str(exp), "--data_dir", str(exp / "data")])
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {exp}: holds no exported model")
