import subprocess
import sys
from pathlib import Path

import pytest

from distill.progress import Progress, watch

LOG = """[host] 2026-01-01 (abs_task:1) INFO: [train] mini-batch sizes summary: N-batch=40, mean=4.0, min=4, max=4
[host] 2026-01-01 (trainer:1) INFO: 3/10epoch started
[host] 2026-01-01 (trainer:1) INFO: 3epoch:train:1-10batch: iter_time=0.004loss=2.500, loss_mmi=1.000, loss_scale=1.000
"""


def test_progress_reads_the_trainers_log():
    progress = Progress(None)
    for line in LOG.splitlines():
        progress.read(line)
    assert progress.epochs == 10 and progress.epochs_done == 2.25
    progress.read(
        "INFO: 3epoch results: [train] loss=2.000, time=1 second, [valid] loss=1.500, ter=0.250, time=1 second"
    )
    assert progress.epochs_done == 3
    assert progress.summary() == "valid ter 0.250, valid loss 1.500, train loss 2.000, train loss_mmi 1.000"


def test_an_epoch_is_done_when_it_has_been_validated():
    progress = Progress(None)
    for line in LOG.splitlines():
        progress.read(line)
    progress.read("[host] 2026-01-01 (trainer:1) INFO: 3epoch:train:31-40batch: loss=2.5")
    assert progress.epochs_done == 2.94


def test_watch_passes_on_failure_and_shows_why(tmp_path):
    log = tmp_path / "x" / "train.log"
    fail = "import sys; print('doing'); print('error: no such teacher', file=sys.stderr); sys.exit(2)"
    command = [sys.executable, "-m", "distill.bin.watch", "--log", str(log), "--", sys.executable, "-c"]
    done = subprocess.run([*command, fail], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: no such teacher"
    crash = subprocess.run([*command, "raise ValueError('boom')"], capture_output=True, text=True, timeout=60)
    assert crash.returncode == 1 and "boom" in crash.stderr and "no such teacher" not in crash.stderr
    assert "doing" in log.read_text() and "boom" in log.read_text()


@pytest.mark.parametrize(("signal", "reason"), [("TERM", "ended by SIGTERM"), ("KILL", "killed, perhaps for want")])
def test_watch_names_the_signal_that_ended_a_training(tmp_path, capsys, signal, reason):
    assert watch(["sh", "-c", f"echo of no interest; kill -{signal} $$"], tmp_path / "log") in (137, 143)
    printed = capsys.readouterr().err
    assert f"error: {tmp_path}/log: the training was {reason}" in printed and "of no interest" not in printed


def test_watch_succeeds(tmp_path):
    assert watch([sys.executable, "-c", f"print({LOG!r})"], tmp_path / "train.log") == 0
    assert "3/10epoch" in (tmp_path / "train.log").read_text()


def test_what_precedes_the_first_epoch_is_shown(tmp_path, capsys):
    before = "[host] 2026-01-01 (cnn_from_log_mel:1) INFO: CNN to log-mel: step 100 of 300, mse 0.5, 9 s left"
    assert watch([sys.executable, "-c", f"print({before!r})"], tmp_path / "teacher_init" / "train.log") == 0
    assert "teacher_init: CNN to log-mel: step 100 of 300 [" in capsys.readouterr().err


def test_watch_shows_warnings_of_ours_alone(tmp_path, capsys):
    from distill.checkpoints import resume  # its warnings carry its name

    line = "[host] 2026-01-01 10:00:00,000 ({module}:12) WARNING: {message}"
    module = Path(resume.__file__).stem
    lines = [line.format(module=module, message="going on"), line.format(module="nets_utils", message="deprecated")]
    watch([sys.executable, "-c", f"print({chr(10).join(lines)!r})"], tmp_path / "train.log")
    shown = capsys.readouterr().err
    assert "warning: going on\n" in shown and "deprecated" not in shown


def test_a_training_that_does_not_leave_the_blank_is_told_once(tmp_path, capsys):
    def log_of(rates: list[float]) -> list[str]:
        lines = []
        for epoch, rate in enumerate(rates, 1):
            lines.append(f"INFO: {epoch}/{len(rates)}epoch started")
            lines.append(f"INFO: {epoch}epoch results: [train] loss=2.0, [valid] loss=1.5, ter={rate:.3f}, time=1")
        return lines

    warnings = {}
    for name, rates in {"stuck": [1.0] * 8, "late": [1.0, 1.0, 0.9, 0.6, 0.5, 0.4], "nan": [float("nan")] * 6}.items():
        watch([sys.executable, "-c", f"print({chr(10).join(log_of(rates))!r})"], tmp_path / name / "train.log")
        warnings[name] = [line for line in capsys.readouterr().err.splitlines() if "next to nothing but blanks" in line]
    assert len(warnings["stuck"]) == 1
    assert "warning: stuck: 100 % token errors on the validation set after 4 of 8 epochs" in warnings["stuck"][0]
    assert "--teacher_init_max_s" in warnings["stuck"][0]
    assert warnings["late"] == warnings["nan"] == []
