"""FSDD's recipe on a machine that fails it: the run that goes on ends in the results of an undisturbed one.

    DISTILL_KILLS=100 python -m pytest -s test/faults/test_recipe_faults.py

kills it as often (default: 2). The moments are spread over an undisturbed run of stages 1 to 13, one kill for each
equal part of it. To save time, a run that is to be killed begins with what the undisturbed one had left after the stage
before.

    DISTILL_KILLS_IN_A_ROW=100 python -m pytest -s -m endurance test/faults/test_recipe_faults.py

kills runs that begin with nothing, again and again until they end all the same: so often in all (default: 10).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny_recipe import FSDD_DIR, ROOT, SIZES, make_recipe, run_recipe

OPTIONS = ["--threads", "1", "--latencies", "480", "--fixed_chunks", "", "--nj", "1", "--local_data_opts", SIZES]
OPTIONS += ["--student_stream_args", "--use_matplotlib false"]
STAGES = range(1, 14)
SYSTEMS = ("teacher", "student_full", "student_full_no_kd", "student_stream")

pytestmark = pytest.mark.usefixtures("digits_made")


class Undisturbed(NamedTuple):
    """A whole run: where it was done, what was there before each stage, when each began, what came out."""

    recipe: Path
    before: dict[int, Path]
    begins: dict[int, float]
    seconds: float
    results: dict
    weights: dict[str, dict]


def results_of(recipe: Path) -> dict:
    """results.json without what the clock and the machine say."""
    results = json.loads((recipe / "exp/results.json").read_text())
    del results["environment"]["date"]
    for row in results["rows"]:
        del row["rtf"]
    return results


def weights_of(recipe: Path, system: str) -> dict[str, torch.Tensor]:
    return torch.load(recipe / f"exp/{system}/valid.loss.ave.pth", weights_only=True)


def half_written(recipe: Path) -> list[str]:
    """Names that only files and directories have that are being written."""
    found = [path for top in ("data", "dump", "exp") for path in (recipe / top).rglob("*")]
    return [str(path.relative_to(recipe)) for path in found if path.name.endswith((".tmp", ".part", ".begun"))]


def put_back(recipe: Path, saved: Path) -> None:
    shutil.rmtree(recipe)
    shutil.copytree(saved, recipe, symlinks=True)


@pytest.fixture(scope="module")
def undisturbed(digits_made: None, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("kills")
    recipe = folder / "egs2" / "fsdd" / "asr_distill1"
    make_recipe(recipe)
    before, begins, clock = {}, {}, 0.0
    for stage in STAGES:
        before[stage], begins[stage] = folder / f"before_{stage}", clock
        shutil.copytree(recipe, before[stage], symlinks=True)
        started = time.monotonic()
        run_recipe(recipe, *OPTIONS, "--stage", str(stage), "--stop_stage", str(stage))
        clock += time.monotonic() - started
    assert not half_written(recipe)
    return Undisturbed(
        recipe, before, begins, clock, results_of(recipe), {name: weights_of(recipe, name) for name in SYSTEMS}
    )


def same_weights(undisturbed: Undisturbed, system: str) -> bool:
    """Whether a system has become what it became undisturbed, to the last bit."""
    weights, expected = weights_of(undisturbed.recipe, system), undisturbed.weights[system]
    return weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)


def assert_nothing_lost(undisturbed: Undisturbed, where: str) -> None:
    """A run that has ended has the results and the weights of the undisturbed one, and left nothing half-written."""
    assert results_of(undisturbed.recipe) == undisturbed.results, where
    for name in SYSTEMS:
        assert same_weights(undisturbed, name), (where, name)
    assert not half_written(undisturbed.recipe), where


def killed(recipe: Path, stage: int, seconds: float) -> bool:
    """Run from a stage on and kill everything that belongs to it; False if it ended before."""
    command = ["./run.sh", "--allow_bad_teacher", "true", *OPTIONS, "--stage", str(stage)]
    running = subprocess.Popen(
        command, cwd=recipe, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert running.wait(seconds) == 0
        return False
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True


def test_a_killed_run_goes_on_to_the_same_results(undisturbed: Undisturbed) -> None:
    generator = random.Random(int(os.environ.get("DISTILL_SEED", "0")))
    kills = int(os.environ.get("DISTILL_KILLS", "2"))
    for kill in range(kills):
        moment = (kill + generator.random()) / kills * undisturbed.seconds
        stage = max(s for s in STAGES if undisturbed.begins[s] <= moment)
        seconds = moment - undisturbed.begins[stage]
        put_back(undisturbed.recipe, undisturbed.before[stage])
        while not killed(undisturbed.recipe, stage, seconds):  # the machine is faster by now
            put_back(undisturbed.recipe, undisturbed.before[stage])
            seconds *= 0.6
        run_recipe(undisturbed.recipe, *OPTIONS)
        where = f"kill {kill + 1} of {kills}, {moment:.1f} s into the run, {seconds:.1f} s after stage {stage} began"
        print(where, flush=True)
        assert_nothing_lost(undisturbed, where)


@pytest.mark.endurance
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_results(undisturbed: Undisturbed) -> None:
    generator = random.Random(int(os.environ.get("DISTILL_SEED", "0")))
    kills = 0
    while kills < int(os.environ.get("DISTILL_KILLS_IN_A_ROW", "10")):
        put_back(undisturbed.recipe, undisturbed.before[1])
        moments: list[float] = []
        while killed(undisturbed.recipe, 1, seconds := generator.uniform(0, undisturbed.seconds / 5)):
            moments.append(round(seconds, 1))
        kills += len(moments)
        print(f"killed {len(moments)} times, after {moments} s; {kills} kills so far", flush=True)
        assert_nothing_lost(undisturbed, str(moments))


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system at ``place``, by mount's options; the test is skipped where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def small_disk(place: Path, kilobytes: int) -> contextlib.AbstractContextManager[None]:
    return mounted(place, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")


def make_room(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)


def one_error(printed: str) -> str:
    """The line that tells what is wrong, of which there is one."""
    assert "Traceback" not in printed, printed[-3000:]
    lines = {line for line in printed.replace("\r", "\n").splitlines() if line.startswith("error:")}
    assert len(lines) == 1, printed[-3000:]
    return lines.pop()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_disk_full_while_targets_are_stored(undisturbed: Undisturbed) -> None:
    recipe, only = undisturbed.recipe, ["--stage", "8", "--stop_stage", "8"]
    put_back(recipe, undisturbed.before[9])
    stored = {path.name: path.read_bytes() for path in (recipe / "dump/targets/train/data").glob("0001.*")}
    put_back(recipe, undisturbed.before[8])
    shards = recipe / "dump/targets/train/data"
    with small_disk(shards, sum(map(len, stored.values())) // 2048):
        printed = run_recipe(recipe, *OPTIONS, *only, status=2)
        assert "No space left on device; make room" in printed and "Traceback" not in printed
        make_room(shards)
        run_recipe(recipe, *OPTIONS, *only)
        assert {path.name: path.read_bytes() for path in shards.glob("0001.*")} == stored


def test_disk_full_in_training(undisturbed: Undisturbed) -> None:
    recipe, only = undisturbed.recipe, ["--stage", "10", "--stop_stage", "10"]
    put_back(recipe, undisturbed.before[11])
    needed = size_of(recipe / "exp/student_full") // 1024
    put_back(recipe, undisturbed.before[10])
    output = recipe / "exp/student_full"
    with small_disk(output, needed // 2):
        line = one_error(run_recipe(recipe, *OPTIONS, *only, status=2))
        assert "No space left on device; make room" in line
        make_room(output)
        run_recipe(recipe, *OPTIONS, *only)
        assert same_weights(undisturbed, "student_full")
        assert not half_written(recipe)


def test_disk_full_in_export(undisturbed: Undisturbed, tmp_path: Path) -> None:
    put_back(undisturbed.recipe, undisturbed.before[13])
    command = [sys.executable, "-m", "distill.bin.export", "--model", "exp/student_stream", "--num_utts", "1"]
    command += ["--data_dirs", "dump/raw/test", "--output", str(tmp_path / "small/export")]
    with small_disk(tmp_path / "small", 60):
        done = subprocess.run(
            command, cwd=undisturbed.recipe, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr[-3000:]
        assert "No space left on device; make room" in one_error(done.stderr)
        assert list((tmp_path / "small").iterdir()) == []


def test_corpus_and_data_directories_may_be_read_only(undisturbed: Undisturbed) -> None:
    recipe = undisturbed.recipe
    put_back(recipe, undisturbed.before[1])
    with mounted(FSDD_DIR, "-o", "bind,ro", str(FSDD_DIR)):
        run_recipe(recipe, *OPTIONS, "--stop_stage", "1")
    with mounted(recipe / "data", "-o", "bind,ro", str(recipe / "data")):
        run_recipe(recipe, *OPTIONS, "--stage", "3", "--stop_stage", "4")
        line = one_error(run_recipe(recipe, *OPTIONS, "--stop_stage", "1", "--force_stage", "1", status=2))
        assert "data" in line and "ead-only" in line
    run_recipe(recipe, *OPTIONS, "--stop_stage", "5")


@pytest.mark.parametrize("year", [1980, 2060])
def test_the_clock_does_not_matter(undisturbed: Undisturbed, year: int) -> None:
    """Files from long ago or from the future: what is done stays done, what is half done is gone on with."""
    recipe = undisturbed.recipe
    put_back(recipe, undisturbed.before[12])
    then = (year - 1970) * 365.25 * 86400
    for top in ("data", "dump", "exp"):
        for path in (recipe / top).rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)
    printed = run_recipe(recipe, *OPTIONS)
    assert "training in" not in printed and printed.count("done before and unchanged, skipped") >= 9
    assert results_of(recipe) == undisturbed.results


def test_a_checkpoint_cut_in_half_is_replaced_by_the_one_before(undisturbed: Undisturbed) -> None:
    recipe = undisturbed.recipe
    put_back(recipe, undisturbed.before[11])
    output = recipe / "exp/student_full"
    checkpoint = output / "checkpoint.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    (output / "valid.loss.ave.pth").unlink()
    (recipe / "exp/.stages/10").rename(recipe / "exp/.stages/10.begun")
    printed = run_recipe(recipe, *OPTIONS, "--stage", "10", "--stop_stage", "10")
    assert "warning: exp/student_full/checkpoint.pth: damaged or cut off; going on from the one before it" in printed
    assert same_weights(undisturbed, "student_full")
