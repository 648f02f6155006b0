"""The scripts that set up: what they print, what they reuse, and the one line when something is missing."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = (
    "awk bash cat chmod cut dirname env flock grep gzip head mkdir mktemp mv rm sed sha256sum tail tar touch".split()
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts in a tree of their own, whose requirements are none, and a PATH with no Python on it."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "utils", clone / "utils")
    (clone / "requirements.txt").write_text("# espnet is what the scripts come from\n")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return clone


def add_python(clone: Path) -> None:
    """The Python that runs this, under the name by which the scripts look for it."""
    wrapper = clone.parent / "bin" / f"python3.{sys.version_info.minor}"
    wrapper.write_text(f'#!/bin/bash\nexec {os.path.realpath(sys.executable)} "$@"\n')
    wrapper.chmod(0o755)


def start(clone: Path, script: str, **variables: str) -> subprocess.Popen[str]:
    home = clone.parent
    environment = {"PATH": str(home / "bin"), "HOME": str(home), "DISTILL_ENV_HOME": str(home / "cache"), **variables}
    command = [str(clone / "utils" / script)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(clone: Path, script: str, status: int = 0, **variables: str) -> tuple[str, str]:
    """(stdout, stderr) of a script that is expected to end with ``status``."""
    running = start(clone, script, **variables)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == status, errors
    return output.strip(), errors


def test_no_python(clone):
    output, errors = run(clone, "make_env.sh", status=2)
    assert output == "" and errors.count("\n") == 1
    assert errors.startswith("error: no Python 3.12 or 3.13 found; install one (apt install python3.12-venv")
    assert not (clone.parent / "cache").exists()


needs_right_python = pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 12), (3, 13)), reason="the environment is of Python 3.12 or 3.13"
)


@needs_right_python
def test_built_once_and_again_when_it_was_cut_off(clone):
    add_python(clone)
    running = [start(clone, "make_env.sh") for _ in range(2)]  # at the same time: one builds, one waits for it
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    python = ends[0][0].strip()
    assert python == ends[1][0].strip() and os.access(python, os.X_OK)
    assert sum("building the environment" in errors for _, errors in ends) == 1
    assert run(clone, "make_env.sh") == (python, "")  # reused, without a word
    (Path(python).parents[1] / ".complete").unlink()
    assert "building the environment" in run(clone, "make_env.sh")[1]
    (clone / "requirements.txt").write_text("# another set\n")
    assert run(clone, "make_env.sh")[0] != python


@needs_right_python
def test_a_package_that_cannot_be_had(clone):
    add_python(clone)
    (clone / "requirements.txt").write_text("there-is-none @ file:///nowhere/there-is-none.whl\n")
    for _ in range(2):  # and not taken for complete the next time
        output, errors = run(clone, "make_env.sh", status=2)
        assert output == "" and "error: " in errors.splitlines()[-1] and "requirements.txt" in errors.splitlines()[-1]


def test_espnet_root(clone, tmp_path):
    checkout = tmp_path / "espnet"
    (checkout / "egs2/TEMPLATE/asr1").mkdir(parents=True)
    _, errors = run(clone, "get_espnet.sh", status=2, ESPNET_ROOT=str(checkout))
    assert errors.count("\n") == 1 and f"ESPNET_ROOT={checkout}: has no egs2/TEMPLATE/asr1/asr.sh;" in errors
    (checkout / "egs2/TEMPLATE/asr1/asr.sh").touch()
    assert run(clone, "get_espnet.sh", ESPNET_ROOT=str(checkout)) == (str(checkout), "")


def source_distribution(clone: Path, version: str) -> Path:
    """A stand-in for ESPnet's source distribution, where an earlier clone would have left it."""
    (clone / "requirements.txt").write_text(f"espnet=={version}\n")
    tree = clone.parent / f"espnet-{version}"
    for name in ("egs2/TEMPLATE/asr1/asr.sh", "egs2/mini_an4/asr1/run.sh", "egs2/other/asr1/run.sh"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(version)
    archive = clone.parent / "cache" / f"espnet-{version}.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(tree, tree.name)
    return archive


def test_espnet_is_unpacked_once_per_version(clone):
    source_distribution(clone, "1")
    running = [start(clone, "get_espnet.sh") for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    espnet = clone / "tools/espnet"
    assert {output.strip() for output, _ in ends} == {str(espnet)}
    assert (espnet / "egs2/TEMPLATE/asr1/asr.sh").read_text() == "1" and not (espnet / "egs2/other").exists()
    assert [path.name for path in (clone / "tools").iterdir()] == ["espnet"]  # nothing half-unpacked beside it
    source_distribution(clone, "2")
    assert run(clone, "get_espnet.sh")[0] == str(espnet)
    assert (espnet / "egs2/TEMPLATE/asr1/asr.sh").read_text() == "2"


def test_a_damaged_source_distribution(clone):
    archive = source_distribution(clone, "1")
    archive.write_bytes(archive.read_bytes()[:100])
    _, errors = run(clone, "get_espnet.sh", status=2)
    assert f"error: {archive}: cannot be unpacked; remove it" in errors
    assert list((clone / "tools").iterdir()) == []


def test_missing_tools_are_a_line_each(clone):
    output, errors = run(clone, "missing_tools.sh")
    assert output == "" and "apt install espeak-ng" in errors
    assert all(row.startswith("note: ") for row in errors.splitlines())
