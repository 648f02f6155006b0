"""Latencies of a network that says what a script says, when it says it."""

import numpy as np
import pytest

from distill.bench import latency
from distill.bin.latency import main
from distill.errors import UserError


def tokens(*spans):
    return [{"token": t, "start_s": s, "end_s": e, "confidence": 1.0} for t, s, e in spans]


class Session:
    """Says the first n tokens once ``at[n - 1]`` seconds of audio have arrived, at the end of a chunk of 160 ms."""

    streaming, chunk_ms, step_ms, wait_ms = True, 160, 160, (165, 85)

    def __init__(self, output, at):
        self.output, self.at = output, at

    def create_stream(self):
        self.samples, self.chunks, self.waiting = 0, 0, []
        return self

    def result(self, event):
        seconds = self.samples / 16000
        known = sum(time <= seconds for time in self.at) if event == "partial" else len(self.output)
        return {"event": event, "audio_s": seconds, "emitted_after_s": 0.004, "tokens": self.output[:known], "text": ""}

    def accept(self, samples):
        self.samples += len(samples)
        if self.samples // 2560 > self.chunks:
            self.chunks += 1
            self.waiting.append("partial")

    def finish(self):
        self.waiting.append("final")

    def decode(self):
        events, self.waiting = self.waiting, []
        return [self.result(event) for event in events]

    def recognize(self, samples):
        self.create_stream().accept(samples)
        return self.result("final")


class Progress:
    def update(self):
        pass


def test_figures_by_hand():
    output = tokens(("a", 0.20, 0.24), ("x", 0.40, 0.42), ("c", 0.70, 0.74))
    aligned = tokens(("a", 0.10, 0.14), ("b", 0.40, 0.44), ("c", 0.64, 0.70))
    student, teacher = Session(output, [0.3, 0.5, 0.9]), Session(aligned, [])
    row = latency.measure(student, teacher, [np.zeros(16000, np.float32)], Progress())
    # a is shown at 0.32 (180 ms after its end), c at 0.96 (260 ms); x is none of the teacher's
    assert row["tokens"] == 2 and row["chunks"] == 6
    assert row["delay_median_ms"] == pytest.approx(220) and row["shift_median_ms"] == pytest.approx(80)
    assert row["first_median_ms"] == pytest.approx(220)
    assert row["compute_median_ms"] == pytest.approx(4) and row["compute_share"] == pytest.approx(4 / 160)
    assert row["wait_worst_ms"] == 165 and row["wait_mean_ms"] == 85
    assert "165" in latency.table([row]) and "220" in latency.table([row])


def test_nothing_in_common():
    student, teacher = Session(tokens(("a", 0, 1)), [0.1]), Session(tokens(("b", 0, 1)), [])
    row = latency.measure(student, teacher, [np.zeros(16000, np.float32)], Progress())
    assert row["delay_median_ms"] is None and row["tokens"] == 0 and row["compute_median_ms"] > 0
    assert latency.table([row]).splitlines()[1].count(" -") == 4
    with pytest.raises(UserError, match="longer"):
        latency.measure(student, teacher, [np.zeros(1000, np.float32)], Progress())


def test_a_teacher_has_no_latency(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--model", str(tmp_path), "--teacher", str(tmp_path), "--data_dir", str(tmp_path)])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
