"""Progress of parallel jobs is read from their logs; a failing job's last words are shown."""

import sys
from pathlib import Path

import pytest

from distill import jobs as watch_jobs

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
    watch_jobs.main(["--logs", str(tmp_path / "job.*.log"), "--", *job])


def test_progress_is_read_from_the_logs(tmp_path, capsys):
    (tmp_path / "job.2.log").write_text("50%|#  | 5/10 [00:01<00:01, 1utt/s]")  # of an earlier run with more jobs
    run(tmp_path, 0)
    assert "8/8 100%" in capsys.readouterr().err


def test_a_failing_job_is_shown(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, 3)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no such file" in said and "1 jobs failed: " + str(tmp_path / "job.1.log") in said
