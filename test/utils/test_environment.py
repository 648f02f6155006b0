"""The scripts that set up: what they print, what they reuse, and the one line when something is missing."""

import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "bash cat chmod comm cp cut dirname env find flock grep gzip mkdir mktemp mv rm sed sha256sum sort tail tar"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts in a tree of their own, whose requirements are none, and a PATH with no Python on it."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "utils", clone / "utils")
    (clone / "requirements.txt").write_text("# espnet is what the scripts come from\n")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS.split():
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
    """A stand-in for ESPnet's source distribution, where an earlier clone would have left it, and its requirement."""
    tree = clone.parent / f"espnet-{version}"
    for name in ("egs2/TEMPLATE/asr1/asr.sh", "egs2/mini_an4/asr1/run.sh", "egs2/other/asr1/run.sh"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(version)
    archive = clone.parent / "cache" / f"espnet-{version}.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(tree, tree.name)
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    hashes = f"    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{checksum}\n"
    (clone / "requirements.txt").write_text(f"espnet=={version} \\\n{hashes}other==1\n")
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


@needs_right_python
def test_a_source_distribution_with_another_checksum_is_fetched_again_and_never_unpacked(clone, tmp_path):
    """From an index, here a folder, as pip is configured; no build code runs, and nothing is written beside."""
    archive = source_distribution(clone, "1")
    whole = archive.read_bytes()
    pinned = (clone / "requirements.txt").read_text()
    (clone / "requirements.txt").write_text("# of the environment, which has no packages\n")
    add_python(clone)
    python, _ = run(clone, "make_env.sh")
    shutil.copytree(Path(python).parents[1], environment_of(clone, pinned))
    (clone / "requirements.txt").write_text(pinned)
    page = tmp_path / "simple/espnet/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{archive.name}#sha256=0">{archive.name}</a>')
    served = tmp_path / "files" / archive.name
    served.parent.mkdir()
    served.write_bytes(whole + b"more")
    archive.write_bytes(whole[:100])
    with folder_served(tmp_path) as url:
        _, errors = run(clone, "get_espnet.sh", status=2, PIP_INDEX_URL=f"{url}/simple")
        assert f"error: {archive.name}: its checksum is not in requirements.txt" in errors
        assert list((clone / "tools").iterdir()) == [] and archive.read_bytes() == whole[:100]
        served.write_bytes(whole)
        run(clone, "get_espnet.sh", PIP_INDEX_URL=f"{url}/simple")
    assert (clone / "tools/espnet/egs2/TEMPLATE/asr1/asr.sh").read_text() == "1" and archive.read_bytes() == whole


def environment_of(clone: Path, requirements: str) -> Path:
    checksum = hashlib.sha256(requirements.encode()).hexdigest()
    return clone.parent / "cache" / f"env-{checksum[:12]}-py3{sys.version_info.minor}"


@contextlib.contextmanager
def folder_served(folder: Path) -> Iterator[str]:
    """Address at which a folder is served."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@needs_right_python
@pytest.mark.parametrize("damage", ["removed", "truncated", "python"])
def test_a_damaged_environment_is_noticed_and_built_again(clone, damage):
    add_python(clone)
    python = Path(run(clone, "make_env.sh")[0])
    (pip,) = python.parents[1].glob("lib/python3*/site-packages/pip")
    if damage == "removed":
        shutil.rmtree(pip)
    elif damage == "truncated":
        (pip / "__init__.py").write_text("")
    else:
        python.unlink()
        python.symlink_to("/nowhere/python")
    _, errors = run(clone, "make_env.sh")
    assert "building the environment" in errors
    assert (f"{pip.name}/" in errors.splitlines()[0]) == (damage != "python"), errors
    assert (pip / "__init__.py").stat().st_size > 0
    assert run(clone, "make_env.sh") == (str(python), "")
    (pip.parent / "added.py").write_text("")  # a package of the user's is no damage
    assert run(clone, "make_env.sh") == (str(python), "")


@needs_right_python
def test_an_environment_that_cannot_be_written_is_used_from_a_fresh_clone(clone, tmp_path):
    add_python(clone)
    archive = source_distribution(clone, "1")
    pinned = (clone / "requirements.txt").read_text()
    (clone / "requirements.txt").write_text("")
    python = Path(run(clone, "make_env.sh")[0])
    python.parents[1].rename(environment_of(clone, pinned))
    (clone / "requirements.txt").write_text(pinned)
    (environment_of(clone, "").with_suffix(".lock")).unlink(missing_ok=True)
    cache, fresh = archive.parent, tmp_path / "fresh"
    shutil.copytree(clone, fresh, ignore=shutil.ignore_patterns("tools"))
    before = sorted(path.name for path in cache.iterdir())
    with read_only(cache):
        assert run(fresh, "make_env.sh") == (f"{environment_of(clone, pinned)}/bin/python", "")
        assert run(fresh, "get_espnet.sh") == (f"{fresh}/tools/espnet", "")
        (fresh / "requirements.txt").write_text("# others\n")
        _, errors = run(fresh, "make_env.sh", status=2)
        assert errors.count("\n") == 1 and "you cannot write there; set DISTILL_ENV_HOME" in errors
    assert sorted(path.name for path in cache.iterdir()) == before


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written, for root neither."""
    if os.getuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("script", ["make_env.sh", "get_espnet.sh"])
def test_without_a_home_one_line_names_the_cure(clone, script):
    (clone / "requirements.txt").write_text("espnet==1\n")
    nothing = {"HOME": "", "DISTILL_ENV_HOME": ""}
    _, errors = run(clone, script, status=2, **nothing)
    assert errors == "error: HOME is not set; set it, or DISTILL_ENV_HOME to a directory for the environment (7 GB)\n"


@needs_right_python
def test_a_home_that_cannot_be_written_is_one_line(clone, tmp_path):
    add_python(clone)
    (tmp_path / "home").mkdir()
    with read_only(tmp_path / "home"):
        _, errors = run(clone, "make_env.sh", status=2, HOME=str(tmp_path / "home"), DISTILL_ENV_HOME="")
    assert errors.count("\n") == 1 and "set DISTILL_ENV_HOME to a directory of yours with 7 GB to spare" in errors


def test_every_requirement_has_checksums():
    least_of = {"requirements": 100, "requirements-k2": 10, "requirements-peers": 3, "requirements-s3prl": 1}
    for name, least in least_of.items():
        entries = re.findall(r"(?m)^[\w.-]+==(?:.*\\\n)*.*$", (ROOT / f"{name}.txt").read_text())
        assert len(entries) >= least
        assert all("--hash=sha256:" in entry for entry in entries)
    assert all("--require-hashes" in (ROOT / name).read_text() for name in ("utils/make_env.sh", "Makefile"))


def test_missing_tools_are_a_line_each(clone):
    output, errors = run(clone, "missing_tools.sh")
    assert output == "" and "apt install espeak-ng" in errors
    assert all(row.startswith("note: ") for row in errors.splitlines())
