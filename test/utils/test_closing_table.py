"""The table that closes a recipe: what is measured stands beside the paper, and the exported teacher is the teacher."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for folder in ("utils", "test/models"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
import closing_table  # noqa: E402
from tiny_networks import TEACHER  # noqa: E402

from distill.models.teacher import Teacher  # noqa: E402

MEASURED = [
    {"system": "teacher", "runtime": "torch", "params": 5_000_000, "rtf": 0.04},
    {"system": "teacher", "runtime": "onnxruntime float32", "params": 5_000_000, "rtf": 0.01},
    {"system": "student_stream", "runtime": "torch", "params": 500_000, "rtf": 0.002},
    {"system": "student_stream", "runtime": "onnxruntime float32", "params": 500_000, "rtf": 0.005},
]


def row(system, latency_ms, wer, relative_loss=None):
    return {"system": system, "test_set": "test", "latency_ms": latency_ms, "wer": wer, "relative_loss": relative_loss}


def test_each_system_counts_in_its_faster_runtime():
    rows = [row("teacher", None, 8.0), row("student_stream", 160, 10.0, 25.0), row("student_stream", 480, 9.0, 12.5)]
    lines = closing_table.closing_table(MEASURED, rows)
    assert "| smaller | 12x | 10.0x (0.50 M of 5.00 M parameters) |" in lines
    assert any("| 8x | 5.0x, RTF 0.0020 (torch) of 0.0100 (onnxruntime float32) |" in line for line in lines)
    assert "| word errors, test, 160 ms | - | +25.0 %, 10.00 % of the teacher's 8.00 % |" in lines
    assert "| word errors, test, 480 ms | +9 to +23.4 % | +12.5 %, 9.00 % of the teacher's 8.00 % |" in lines


def test_a_teacher_without_errors_has_no_relative_loss():
    lines = closing_table.closing_table(MEASURED, [row("teacher", None, 0.0), row("student_stream", 480, 1.0)])
    assert any("teacher has no error, 1.00 % of the teacher's 0.00 %" in line for line in lines)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Teacher(5, {**TEACHER, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}).eval()


def audio(samples):
    return 0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)


def test_the_exported_teacher_recognises_utterances_of_any_length(teacher):
    exported = closing_table.ExportedTeacher(teacher, [audio(9000), audio(5000)])
    speech = audio(12345)
    with torch.no_grad():
        expected = teacher(torch.from_numpy(speech)[None], torch.tensor([12345])).logits.numpy()
    np.testing.assert_allclose(exported.logits(speech), expected, atol=1e-4)
    best = expected[0].argmax(-1)
    kept = [t for n, t in enumerate(best) if t != 0 and (n == 0 or t != best[n - 1])]
    assert exported.recognize(speech).tolist() == kept


def test_a_teacher_that_was_exported_wrongly_is_not_measured(teacher, monkeypatch):
    monkeypatch.setattr(closing_table.ExportedTeacher, "logits", lambda self, speech: np.float32(1e3))
    with pytest.raises(closing_table.UserError, match="logits are off by"):
        closing_table.ExportedTeacher(teacher, [audio(9000)])
