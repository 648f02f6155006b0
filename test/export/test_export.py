"""What the export leaves and refuses, by a tiny student."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, VOCAB, speech, student

from distill.bin.export import main
from distill.export import parity

STUDENT = {"front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A training in model, and two utterances in data."""
    folder = tmp_path_factory.mktemp("student")
    (folder / "model").mkdir()
    (folder / "data").mkdir()
    config = {"network": "student", "network_conf": STUDENT, "chunk_conf": {"left_ms": 800}, "token_type": "word"}
    tokens = ["<blank>", *(str(i) for i in range(1, VOCAB))]
    (folder / "model/config.yaml").write_text(yaml.safe_dump({**config, "token_list": tokens}))
    torch.save({f"network.{key}": x for key, x in student().state_dict().items()}, folder / "model/model.pth")
    for name in "ab":
        soundfile.write(folder / f"data/{name}.wav", speech(16000).numpy(), 16000, "FLOAT" if name == "a" else "PCM_16")
    (folder / "data/wav.scp").write_text("".join(f"{name} {folder}/data/{name}.wav\n" for name in "ab"))
    (folder / "data/text").write_text("a 1 2\nb 3\n")
    return folder


def run(folder: Path, output: Path) -> list[str]:
    """Export; the files that are there afterwards."""
    given = ["--model", str(folder / "model"), "--data_dirs", str(folder / "data"), "--output", str(output)]
    main([*given, "--chunk_ms", "160"])
    return sorted(path.name for path in output.glob("*"))


@pytest.mark.parametrize("kind", ["float32", "streams_float32", "sherpa_float32"])
def test_a_log_posterior_that_is_off_ends_it_and_leaves_the_earlier_export(folder, tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/student_480ms.onnx").write_text("earlier")
    name = "raw_audio_log_probs" if kind.startswith("sherpa") else "onnx_comparison"
    right = getattr(parity, name)
    wanted = [kind == "float32", kind == "streams_float32", False, False]  # in the order in which files are compared

    def off_by(value):
        """Of a log-posterior of every utterance."""
        if isinstance(value, parity.Comparison):
            actual = value._recognize
            if not wanted.pop(0):
                return value
            value._recognize = lambda audio: (off_by(actual(audio)[0]), actual(audio)[1])
            return value
        value[0, -1] += 0.002
        return value

    monkeypatch.setattr(parity, name, lambda *arguments, **options: off_by(right(*arguments, **options)))
    with pytest.raises(SystemExit) as end:
        run(folder, tmp_path / "export")
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"({kind})" in line and "0.002, more than 0.001" in line
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export/student_480ms.onnx").read_text() == "earlier"


@pytest.mark.parametrize("times, loss, reason", [
    ([1.0, 0.5], 1e9, None),
    ([1.0, 1.1], 1e9, "a chunk takes 1.10 ms, in float32 1.00 ms"),
    ([1.0, 0.5], 0, "word errors (int8)"),
])  # fmt: skip
def test_int8_that_is_slower_or_worse_is_not_offered(folder, tmp_path, monkeypatch, times, loss, reason):
    monkeypatch.setattr(parity, "step_times", lambda *_: times)
    monkeypatch.setattr(parity, "INT8_LOSS", loss)
    files = run(folder, tmp_path / "export")
    (about,) = json.loads((tmp_path / "export/parity.json").read_text())["exports"]
    assert about["int8_offered"] == (reason is None) == ("student_160ms.int8.onnx" in files)
    assert ("sherpa_160ms.int8.onnx" in files) == ("streams_160ms.int8.onnx" in files) == (reason is None)
    assert {"student_160ms.onnx", "streams_160ms.onnx", "sherpa_160ms.onnx", "tokens.txt"} <= set(files)
    assert reason is None or any(reason in message for message in about["int8_reasons"])
    for kind in ("streams_float32", "sherpa_float32"):
        assert about[kind]["max_log_prob_difference"] < 1e-3 and about[kind]["frames_beyond_bound"] == 0
        assert about[kind]["frames"] > 10


@pytest.mark.parametrize(
    "frames, beyond, difference, equal",
    [
        (20000, 2, 0.002, True),
        (20000, 3, 0.002, False),
        (20000, 1, 0.02, False),
        (9, 0, 9e-4, True),
        (9, 1, 2e-3, False),
    ],
)
def test_rarely_a_frame_may_differ_by_more(frames, beyond, difference, equal):
    expected = np.zeros((frames, 3), np.float32)
    actual = expected.copy()
    actual[:beyond, 1] = difference
    comparison = parity.Comparison(lambda _audio: (actual, "a"))
    comparison.add(parity.Utterance(np.zeros(1, np.float32), "a"), expected, "a")
    assert comparison.report()["frames_beyond_bound"] == beyond
    assert parity.is_equal(comparison.report()) == equal
