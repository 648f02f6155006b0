"""What a user or the machine did wrong ends in one line and exit status 2."""

import errno
import os

import pytest

from distill.errors import UserError, cli


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


def test_a_fault_of_the_program_is_none_of_the_users():
    @cli
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        main()
