"""The benchmark of large corpora: its inputs are what the steps take, and its page says what was measured."""

from __future__ import annotations

import math

import pytest

from distill.bench import scale

SMALL = {"graph": 400, "reuse": 400, "denominator": 1000, "lm": 1000, "score": 40, "results": 40}


@pytest.mark.parametrize("maker", dict.fromkeys((step.make or step.run) for step in scale.STEPS.values()))
def test_steps_run_on_what_is_made_for_them(maker, tmp_path, monkeypatch, capsys):
    """In this process, with audio that counts as old."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("distill.targets.audio_checksums.RECENT_NS", -(10**18))
    monkeypatch.setattr("distill.scoring.score.find_sclite", None)  # given back afterwards
    names = [name for name, step in scale.STEPS.items() if maker in (step.make, step.run)]
    size = SMALL.get(names[0], 130)
    if scale.STEPS[names[0]].make:
        maker(size, tmp_path)
    for name in names:
        scale.measure(name, size, tmp_path)
        took = scale.json.loads(capsys.readouterr().out.splitlines()[-1])
        assert took.keys() == {"seconds", "cpu", "gb", "private_gb"} and took["gb"] > 0.01
    made = {path.name for path in tmp_path.rglob("*")}
    expected = {"lengths": "speech_shape", "graph": "lm.arpa.graphs", "lm": "lm.arpa", "score": "score.json"}
    expected |= {"results": "RESULTS.md", "denominator": "den.npz"}
    assert all(file in made for name, file in expected.items() if name in names)


def took(cpu: float, gb: float) -> dict[str, float]:
    return {"seconds": 2 * cpu, "cpu": cpu, "gb": gb, "private_gb": gb / 2}


def test_growth_is_fitted_to_the_two_largest_sizes():
    sizes = {"10": took(9, 9), "1000": took(1, 1.0), "2000": took(4, 1.5)}
    seconds, gb, exponent = scale.fitted(sizes, 8000)
    assert exponent == pytest.approx(2) and seconds == pytest.approx(64) and gb == pytest.approx(4.5)
    slower = {"1000": took(3, 2.0), "2000": took(4, 1.9)}
    seconds, gb, exponent = scale.fitted(slower, 8000)  # at least linear, and memory does not shrink
    assert exponent == pytest.approx(math.log2(4 / 3)) and seconds == pytest.approx(16) and gb == 1.9


def test_the_page_tells_what_holds_and_what_does_not():
    measured = {
        "targets": {"67000": took(2, 0.4), "267000": took(9, 0.6), "2000000": took(80, 2.9)},
        "start": {"67000": took(4, 0.5), "267000": took(16, 0.7)},
        "results": {"50000": took(20, 1.2)},
    }
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in scale.page(measured).splitlines()}
    assert ("stage 8: check of unchanged targets", "267,000 utterances", "10 s, 3 GB", "9.0 s, 0.60 GB", "yes") in rows
    assert ("training: start with targets", "267,000 utterances", "15 s, 3 GB", "16.0 s, 0.70 GB", "no") in rows
    assert ("stage 13: results of 8 systems", "50,000 utterances", "60 s, 1 GB", "20.0 s, 1.20 GB", "no") in rows
    seconds, gb, exponent = scale.fitted(measured["targets"], scale.XL)
    assert (
        "stage 8: check of unchanged targets",
        f"{exponent:.2f}",
        "10 s, 0.6 GB",
        f"{seconds:.0f} s, {gb:.1f} GB",
        "yes",
    ) in rows
