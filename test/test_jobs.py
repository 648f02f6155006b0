"""Progress of parallel jobs is read from their logs; a failing job's last words are shown."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill import jobs
from distill.errors import UserError
from distill.jobs import watch

JOB = """
import sys, time
with open(sys.argv[1], "w") as log:
    print("  0%|          | 0/8 [00:00<?, ?utt/s]\\r100%|####| 8/8 [00:02<00:00, 3.9utt/s]", file=log)
    print("no such file", file=log)
time.sleep(1.5)
sys.exit(int(sys.argv[2]))
"""


def run(tmp_path: Path, status: int) -> None:
    job = [sys.executable, "-c", JOB, str(tmp_path / "job.1.log"), str(status)]
    watch(job, str(tmp_path / "job.*.log"))


def test_progress_is_read_from_the_logs(tmp_path, capsys):
    (tmp_path / "job.2.log").write_text("50%|#  | 5/10 [00:01<00:01, 1utt/s]")  # of an earlier run with more jobs
    run(tmp_path, 0)
    shown = capsys.readouterr().err
    assert "8/8 100%" in shown and "None" not in shown and "0/0" not in shown


def test_a_failing_job_is_shown(tmp_path, capsys):
    with pytest.raises(UserError, match=f"1 jobs failed: {tmp_path / 'job.1.log'}"):
        run(tmp_path, 3)
    assert "no such file" in capsys.readouterr().err


def test_a_failing_jobs_line_of_error_is_the_only_one(tmp_path, capsys):
    (tmp_path / "run").write_text('echo "error: a/b.ark: No space left; make room" > "$1"; exit 1')
    log = tmp_path / "job.1.log"
    with pytest.raises(UserError) as caught:
        watch(["bash", str(tmp_path / "run"), str(log)], str(tmp_path / "job.*.log"))
    assert str(caught.value) == f"1 jobs failed: {log}: a/b.ark: No space left; make room"
    assert "error" not in capsys.readouterr().err


def test_a_full_disk_is_the_reason_of_a_failed_job_whose_log_lacks_one(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "full_disk", lambda: str(tmp_path))
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(tmp_path, 3)
    assert caught.value.filename == str(tmp_path / "job.1.log")


def test_the_command_ends_with_status_2_if_a_job_fails(tmp_path):
    command = [sys.executable, "-m", "distill.bin.watch_jobs", "--logs", str(tmp_path / "job.*.log"), "--", "false"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "0 jobs failed: " in done.stderr
