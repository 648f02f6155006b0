"""What a user or the machine did wrong ends in one line and exit status 2."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.errors import UNSAFE, UserError, cli


def ended(error: Exception, capsys) -> str:
    """What is said of it."""

    @cli
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_input(capsys):
    assert ended(UserError("text:3: empty\nline; remove it"), capsys) == "error: text:3: empty line; remove it"


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.ENOSPC, "make room on that disk"), (errno.EROFS, "read-only"), (errno.EACCES, "perm")]
)
def test_what_the_machine_refuses(capsys, number, cure):
    output = ended(OSError(number, os.strerror(number), "exp/x"), capsys)
    assert output.startswith(f"error: exp/x: {os.strerror(number)}; ") and cure in output
    assert ended(OSError(number, os.strerror(number)), capsys).startswith(f"error: {os.strerror(number)}; ")
    copied = ended(OSError(number, os.strerror(number), "source", None, "target"), capsys)
    assert copied.startswith("error: source: " if number == errno.EACCES else "error: target: ")


def test_a_fault_of_the_program_is_none_of_the_users():
    @cli
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        main()


def test_what_a_library_raises_on_a_full_disk_is_one_line(capsys, monkeypatch):
    error = RuntimeError("cannot write 'a.wav':\nSystem error")

    @cli
    def main() -> None:
        raise error

    with pytest.raises(RuntimeError):
        main()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    line = ended(error, capsys)
    assert line.startswith(
        f"error: {os.getcwd()}: cannot write 'a.wav': System error: No space left on device; make room"
    )


def start(body: str, *, shell: str = "", **variables: str) -> subprocess.Popen[str]:
    """A command with this body, in a process; ``shell`` redirects its streams."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    program = f"import os, sys, tempfile, time\nfrom distill.errors import cli\n@cli\ndef main():\n{lines}main()\n"
    command = ["bash", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, program]
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **variables}
    # A process in the background of a script inherits that SIGINT is ignored, one under nohup that SIGHUP is

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(command, env=environment, text=True, errors="surrogateescape",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=heed)  # fmt: skip


@pytest.mark.parametrize("count", [2, 100000], ids=["buffered", "more than a buffer"])
def test_a_closed_pipe_is_no_error(count):
    process = start(f"print('first', flush=True)\ntime.sleep(0.5)\nfor n in range({count}): print(n)")
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE and process.stderr.read() == ""


def test_a_full_disk_shows_when_the_last_output_is_written():
    process = start("print('x')", shell="> /dev/full")
    assert process.communicate(timeout=60)[1].startswith("error: No space left on device") and process.returncode == 2


def test_an_error_does_not_stand_behind_a_progress_bar():
    body = "import tqdm\nitems = iter(tqdm.tqdm(range(3)))\nnext(items)\nraise OSError(28, 'full', 'a')"
    process = start(body)
    lines = process.communicate(timeout=60)[1].splitlines()
    assert lines[-1].startswith("error: a: full; ") and process.returncode == 2


def test_the_file_that_takes_the_output_is_named(tmp_path):
    """A limit stands for the full disk."""
    body = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nprint('x')"
    process = start(body, shell=f"> {tmp_path}/out.txt")
    assert process.communicate(timeout=60)[1].startswith(f"error: {tmp_path}/out.txt: File too large; ")
    assert process.returncode == 2


def test_closed_streams_are_empty_and_no_file_gets_their_numbers(tmp_path):
    body = f"print(repr(sys.stdin.buffer.read()))\nwith open({str(tmp_path / 'file')!r}, 'w') as file:\n"
    body += "    print('x', flush=True)\n    print('y', file=sys.stderr)\n"
    body += "    print(file.fileno() > 2, os.get_inheritable(0), file=file)"
    process = start(body, shell="<&-")
    assert process.communicate(timeout=60) == ("b''\nx\n", "y\n") and process.returncode == 0
    process = start(body, shell="<&- >&- 2>&-")
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    assert (tmp_path / "file").read_text() == "True True\n"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_what_the_locale_lacks_is_escaped():
    process = start("print('\\u00fc \\u2581')\nprint('\\u00fc', file=sys.stderr)", **ASCII)
    assert process.communicate(timeout=60) == ("\\xfc \\u2581\n", "\\xfc\n") and process.returncode == 0
    process = start("print(os.fsdecode(bytes([255])))", PYTHONUTF8="1")  # a file name that is not UTF-8
    assert process.communicate(timeout=60)[0] == "\udcff\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_temporary_files(number, tmp_path):
    body = "with tempfile.TemporaryDirectory() as folder:\n    print(folder, flush=True)\n    time.sleep(60)"
    process = start(body, TMPDIR=str(tmp_path))
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path and folder.is_dir()
    process.send_signal(number)
    assert process.wait(30) == 128 + number and process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_may_run_no_code_in_a_command_or_its_processes():
    body = f"import subprocess\nsubprocess.run(['env'])\nprint(any(name in os.environ for name in {UNSAFE!r}))"
    output, errors = start(body, **dict.fromkeys(UNSAFE, "1")).communicate(timeout=60)
    assert output.endswith("False\n") and not any(name in output for name in UNSAFE)
    assert errors.splitlines() == [f"note: {name} is ignored: it would let a checkpoint run code" for name in UNSAFE]
    script = f". {Path(__file__).parents[1]}/local/path.sh; env"
    environment = {**os.environ, **dict.fromkeys(UNSAFE, "1"), "DISTILL_READY": ""}
    done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not any(name in done.stdout for name in UNSAFE), done.stderr
    assert all(f"note: {name} is ignored" in done.stderr for name in UNSAFE)
