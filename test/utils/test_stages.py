"""Functions of local/stages.sh, which recipes are made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FULL_DISK = "No space left on device; make room on that disk and run the same command again"
ROOT = Path(__file__).parents[2]
BEGIN = """
set -euo pipefail
log() { echo "$*"; }
fail() { echo "error: $*" >&2; exit 2; }
. "$1/local/stages.sh"
"""


def run(folder: Path, commands: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", BEGIN + commands, "bash", ROOT], cwd=folder, capture_output=True, text=True)


def test_output_of_other_toolkits_goes_to_a_log(tmp_path):
    done = run(tmp_path, "quietly some/log.txt echo many words; echo after")
    assert (done.returncode, done.stdout, done.stderr) == (0, "after\n", "")
    assert (tmp_path / "some/log.txt").read_text() == "many words\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo one; echo OSError: No space left on device; echo three; exit 1", f"OSError: {FULL_DISK}"),
        (
            "echo Vocabulary size too high 500 error; exit 1",
            "Vocabulary size too high 500 error (--nbpe; or take --token_type char)",
        ),
        ("echo one; echo two; exit 3", "two"),
        ("exit 1", ""),
    ],
)
def test_a_failure_of_another_toolkit_is_one_line_that_names_its_log(tmp_path, command, message):
    done = run(tmp_path, f"quietly log.txt bash -c '{command}'; echo after")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: log.txt: failed: {message}\n"


@pytest.mark.parametrize(("df", "status"), [("echo Avail; echo 12", 2), ("echo Avail; echo -", 0), ("exit 1", 0)])
def test_another_toolkit_that_succeeds_on_a_full_disk_has_failed(tmp_path, df, status):
    """Its programs do not notice every write that fails."""
    done = run(tmp_path, f"df() {{ {df}; }}; quietly log.txt echo fine")
    assert (done.returncode, done.stderr) == (status, f"error: log.txt: failed: {FULL_DISK}\n" if status else "")


@pytest.mark.parametrize(("command", "status"), [("cp none some", 2), ("exit 3", 3), ("true", 0)])
def test_a_full_disk_is_named_when_a_command_of_the_shell_fails(tmp_path, command, status):
    done = run(tmp_path, f"dumpdir=. expdir=.; df() {{ echo Avail; echo 12; }}; {command}")
    assert done.returncode == status
    assert (f"error: ./: {FULL_DISK}" in done.stderr) == (status == 2)


def test_utterances_that_were_left_out_are_named(tmp_path):
    for name, keys in {"before": "abcde", "after": "ace"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "wav.scp").write_text("".join(f"{key} {key}.wav\n" for key in keys))
        (tmp_path / name / "utt2num_samples").write_text("".join(f"{key} {32000 + ord(key)}\n" for key in keys))
    assert (
        run(tmp_path, "left_out before after").stdout.strip()
        == "left out: 2 of 5 utterances of other lengths or without text: b (2.0 s), d (2.0 s)"
    )
    assert run(tmp_path, "left_out before before").stdout == ""


def test_what_a_run_has_made_and_what_comes_next(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/RESULTS.md").touch()
    lines = run(tmp_path, "SECONDS=125; stage=1 stop_stage=13; summary exp").stdout.splitlines()
    assert lines[0] == "finished stages 1 to 13 in 2 min 5 s"
    assert lines[1:] == [
        "  results: exp/RESULTS.md",
        "  next: the same command with --stage 14 --stop_stage 16; what is done is skipped",
    ]
    assert "next" not in run(tmp_path, "stage=16 stop_stage=16; summary exp").stdout
    (tmp_path / "exp/results.json").touch()
    (tmp_path / "exp/student_stream.zip").touch()
    assert "next" not in run(tmp_path, "stage=1 stop_stage=13; summary exp").stdout  # all of it is there already


@pytest.mark.parametrize("status", [0, 1])
def test_a_training_beside_the_others_is_waited_for(tmp_path, status):
    commands = f"""
    finish() {{ echo "finished $1"; }}
    work() {{ sleep 0.2; echo progress >&2; return {status}; }}
    wait_beside
    start_beside stamp some/progress.log work
    echo others
    wait_beside
    """
    done = run(tmp_path, commands)
    assert done.returncode == (2 if status else 0)
    assert ("finished stamp" in done.stdout) == (status == 0) and "others\n" in done.stdout
    assert (tmp_path / "some/progress.log").read_text() == "progress\n"


@pytest.mark.parametrize(("utterances", "kept"), [(1200, 360), (500, 300), (20, 20)])
def test_a_first_training_takes_the_shortest_utterances(tmp_path, utterances, kept):
    """--max-seconds auto: three tenths of them, at least 300. The training itself has no configuration and fails."""
    for name in ("train", "valid"):
        (tmp_path / "stats" / name).mkdir(parents=True)
        lines = [f"u{number:04d} {16000 + 16 * (number * 7919 % utterances)}" for number in range(utterances)]
        (tmp_path / "stats" / name / "speech_shape").write_text("\n".join(lines) + "\n")
    command = [ROOT / "local/train.sh", "--token-list", "tokens.txt", "--stats-dir", "stats", "--ngpu", "0"]
    command += ["--max-seconds", "auto", "none.yaml", "train", "valid", "exp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    longest = 1 + (kept - 1) / 1000
    assert f"training on utterances of at most {longest:g} s" in done.stdout
    lengths = [int(line.split()[1]) for line in (tmp_path / "exp/train_shape").read_text().splitlines()]
    assert sorted(lengths) == [16000 + 16 * number for number in range(kept)]
