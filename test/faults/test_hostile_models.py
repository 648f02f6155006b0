"""A share of the cases of hostile_models.py and hostile_audio.py; `python test/faults/hostile.py` runs all."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import hostile_audio
import hostile_models
import pytest
import verdict

SHARE = 30  # cases


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> hostile_models.Hostile:
    return hostile_models.Hostile(tmp_path_factory.mktemp("hostile"))


CASES = random.Random(1).sample(list(hostile_models.cases()), SHARE)
ALWAYS = [case for case in hostile_models.cases() if case.name in ("config.yaml: aliases", "weights: one NaN")]


@pytest.mark.parametrize("case", [*ALWAYS, *CASES], ids=lambda case: case.name[:60])
def test_a_damaged_model_is_refused_in_one_line(hostile: hostile_models.Hostile, case: hostile_models.Case) -> None:
    assert hostile.check(case) == []


@pytest.mark.parametrize("section", hostile_audio.SECTIONS)
def test_damaged_audio_is_refused_in_one_line(section: str) -> None:
    assert hostile_audio.SECTIONS[section](0) == []


@pytest.mark.parametrize(
    ("main", "fault"),
    [
        (lambda arguments: print("fine"), None),
        (lambda arguments: 1 / 0, "traceback, ZeroDivisionError"),
        (lambda arguments: exit(1), "exit status 1"),
        (lambda arguments: exit(2), "no one line of error"),
        (lambda arguments: print("\x1b[2J"), "control characters reach the terminal"),
        (lambda arguments: [bytearray(1 << 20) for _ in range(3000)] and None, "MB"),
        (lambda arguments: time.sleep(9), "hangs"),
        (lambda arguments: [number for number in range(10**8) if number < 0] and None, "computes for more than 1 s"),
    ],
)
def test_the_verdict_notices(main: Callable[[list[str]], None], fault: str | None, tmp_path: Path) -> None:
    most_s = 1 if fault in ("hangs", "computes for more than 1 s") else 60
    found = verdict.faults(verdict.run(main, [], tmp_path, most_s), most_s)
    # On a busy machine what computes may hang first.
    expected = [fault, "hangs"] if fault and "computes" in fault else [fault]
    assert not found if fault is None else any(text in line for text in expected for line in found), found
