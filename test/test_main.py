"""The command ``distill``: its page, its commands, and what it says of others."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.bin import main as command
from distill.bin.main import main

BIN = Path(command.__file__).parent
COMMANDS = sorted(path.stem for path in BIN.glob("*.py") if path.stem not in command.NO_COMMANDS)


def test_the_page_names_every_command_and_no_other():
    assert command.__doc__ is not None
    rows = re.findall(r"(?m)^  ((?:\w+, )*\w+)  ", command.__doc__)
    assert sorted(name for row in rows for name in row.split(", ")) == COMMANDS


def test_the_page_fits_a_terminal():
    assert max(map(len, str(command.__doc__).splitlines())) <= 100


@pytest.mark.parametrize("name", [*COMMANDS, "main"])
def test_a_command_file_has_at_most_60_lines(name):
    assert len((BIN / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_is_printed(arguments, capsys):
    main(arguments)
    assert capsys.readouterr().out == command.__doc__


@pytest.mark.parametrize("name", ["transcrib", "main", "arguments", "__init__", "../bin/score", ""])
def test_an_unknown_command_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {name}: not a command; ") and message.count("\n") == 1


def test_a_misspelt_command_has_the_nearest_name(capsys):
    with pytest.raises(SystemExit):
        main(["packk"])
    assert capsys.readouterr().err == "error: packk: not a command; pack? distill --help lists them\n"


def test_python_m_distill_runs_a_command_under_its_name():
    done = subprocess.run([sys.executable, "-m", "distill", "transcribe"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: distill transcribe: the following arguments")
    assert done.stderr.count("\n") == 1


def test_help_needs_none_of_the_large_packages():
    program = "import sys; from distill.bin.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 3, "0.1 s on an idle machine"
    assert not {"torch", "numpy", "yaml", "espnet2", "argparse"} & set(done.stderr.split())


@pytest.mark.parametrize("name", ["transcribe", "decode", "serve", "stream_client", "export", "tune_decoding"])
def test_help_of_a_command_does_not_wait_for_torch(name):
    program = f"import sys; sys.modules['torch'] = None; from distill.bin.main import main; main(['{name}', '--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: distill {name} "), done.stderr
