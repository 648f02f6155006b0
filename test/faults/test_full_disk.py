"""A disk that becomes full in any stage of a recipe: one line that names a file, and exit status 2.

    DISTILL_FULL_DISKS=20 python -m pytest test/faults/test_full_disk.py

fills the disk of each stage at so many points of what it writes (default: 1, when half of it is written).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from test_recipe_faults import OPTIONS as RECIPE_OPTIONS
from test_recipe_faults import half_written, mounted, one_error
from tiny_recipe import make_recipe, run_recipe

# So that every stage has something to write; statistics (stage 9) are collected in stage 7, which needs them first.
OPTIONS = [*RECIPE_OPTIONS, "--decoders", "greedy wfst", "--speed_perturb_factors", "0.9 1.0"]
STAGES = range(1, 17)
IDLE = 9
POINTS = int(os.environ.get("DISTILL_FULL_DISKS", "1"))
TOPS = ("data", "dump", "exp")
FULL = ("No space left on device; make room", "GB are free; what fits")  # the latter before anything is extracted

pytestmark = pytest.mark.usefixtures("digits_made")


class Whole(NamedTuple):
    """A recipe's directory, what was there before each stage, and the bytes of disk that each stage took."""

    recipe: Path
    before: dict[int, Path]
    needed: dict[int, int]


def blocks(folder: Path) -> int:
    """Bytes of a memory file system that the files of a folder take."""
    sizes = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if is_file(path)}
    return sum(-size // 4096 * -4096 for size in sizes.values())


def is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@pytest.fixture(scope="module")
def whole(digits_made: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("full")
    recipe = folder / "egs2" / "fsdd" / "asr_distill1"
    make_recipe(recipe)
    before, needed = {}, {}
    for stage in STAGES:
        before[stage], size = folder / f"before_{stage}", blocks(recipe)
        shutil.copytree(recipe, before[stage], symlinks=True)
        run_recipe(recipe, *OPTIONS, "--stage", str(stage), "--stop_stage", str(stage))
        needed[stage] = blocks(recipe) - size
    return Whole(recipe, before, needed)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != IDLE])
def test_a_full_disk_ends_a_stage_in_one_line_that_names_a_file(whole: Whole, stage: int) -> None:
    """Data, dump and exp are on one disk, which has room for a part of what the stage writes."""
    for point in range(POINTS):
        fill_in_stage(whole, stage, int(whole.needed[stage] * (point + 0.5) / POINTS))


def fill_in_stage(whole: Whole, stage: int, left: int) -> None:
    """Run a stage on a disk that has so many bytes of room once it has begun."""
    recipe = whole.recipe
    shutil.rmtree(recipe, ignore_errors=True)
    with mounted(recipe, "-t", "tmpfs", "-o", "size=4g", "tmpfs"):  # no run is begun without room
        shutil.copytree(whole.before[stage], recipe, symlinks=True, dirs_exist_ok=True)
        command = ["./run.sh", "--allow_bad_teacher", "true", *OPTIONS]
        command += ["--stage", str(stage), "--stop_stage", str(stage)]
        running = subprocess.Popen(
            command, cwd=recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert running.stdout is not None
        printed, filled = "", False
        for line in running.stdout:
            printed += line
            if f" stage {stage}: " in line and not filled:
                disk = os.statvfs(recipe)
                resize(recipe, (disk.f_blocks - disk.f_bfree) * disk.f_frsize + left)
                filled = True
        status = running.wait()
        where = f"{left} of {whole.needed[stage]} bytes left:\n{printed[-3000:]}"
        assert filled and status == 2, where
        line = one_error(printed)
        assert any(words in line for words in FULL) and any(f"{top}/" in line for top in TOPS), where
        if stage == 3:  # with room made, the same command goes on
            resize(recipe, 4 << 30)
            run_recipe(recipe, *OPTIONS, "--stage", str(stage), "--stop_stage", str(stage))
            assert not half_written(recipe)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size // 1024}k", disk], check=True)
