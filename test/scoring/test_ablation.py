"""The table over seeds, from score files as stage 13 leaves them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from distill.bin import ablation

CONDITIONS = (
    "default\tfull\tthe recipe's stage 1\nno_teacher\tno_kd\tno teacher\nposterior\tfull\tposterior\n"
    "beta\tfull\tβ = 1\nstream\tstream\tthe recipe's stage 2\nstream_direct\tdirect\tone stage\n"
)
WERS = {
    "default": ("default", "student_full/decode_full", [4.0, 5.0, 6.0]),
    "no_teacher": ("default", "student_full_no_kd/decode_full", [40.0, 30.0, 41.0]),
    "posterior": ("posterior", "student_full/decode_full", [5.1, 6.0, 6.9]),  # worse with every seed by about as much
    "beta": ("beta", "student_full/decode_full", [3.0, 8.0]),
    "stream": ("stream", "student_stream/decode_480ms", [7.0]),
    "stream_direct": ("stream_direct", "student_full/decode_480ms", [9.5]),
}


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for trained_in, system, wers in WERS.values():
        for seed, wer in enumerate(wers):
            path = tmp_path / f"{trained_in}_seed{seed}" / system / "test/score_wer/score.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"wer": wer}))
    monkeypatch.setattr("sys.stdin", io.StringIO(CONDITIONS))
    ablation.main(["--expdir", str(tmp_path), "--test_sets", "test test_unseen", "--note", "2 epochs"])
    rows = {row["condition"]: row for row in json.loads((tmp_path / "ablation.json").read_text())["rows"]}
    assert set(rows) == set(WERS)
    assert {name: list(row["wer"].values()) for name, row in rows.items()} == {n: w for n, (_, _, w) in WERS.items()}
    assert rows["no_teacher"]["difference"] == pytest.approx(32.0)
    assert rows["stream_direct"]["difference"] == 2.5 and rows["stream_direct"]["interval"] is None
    differences = np.array([1.1, 1.0, 0.9])
    half = 4.302653 * differences.std(ddof=1) / np.sqrt(3)  # the quantile from a printed table
    np.testing.assert_allclose(rows["posterior"]["interval"], [1 - half, 1 + half], rtol=1e-6)
    output = (tmp_path / "ABLATION.md").read_text()
    assert "| posterior | 6.00 (5.10 6.00 6.90) | **+1.00 (+0.75..+1.25)** |" in output
    assert "| β = 1 | 5.50 (3.00 8.00) | +1.00 (-24.41..+26.41) |" in output
    assert (
        output.index("Stage 1")
        < output.index("| no teacher |")
        < output.index("Stage 2")
        < output.index("| one stage |")
    )


def test_seeds_of_other_machines_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def machine(name: str, wers: dict[int, float], *also: Path) -> Path:
        """ablation.json of a machine with the default condition's WER of these seeds."""
        for seed, wer in wers.items():
            path = tmp_path / name / f"default_seed{seed}/student_full/decode_full/test/score_wer/score.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"wer": wer}))
        monkeypatch.setattr("sys.stdin", io.StringIO(CONDITIONS))
        options = ["--expdir", str(tmp_path / name), "--test_sets", "test", "--note", "2 epochs"]
        ablation.main([*options, "--also", *map(str, also)])
        return tmp_path / name / "ablation.json"

    joined = machine("b", {1: 5.5, 2: 6.0}, machine("a", {0: 4.0, 1: 5.0}))
    (row,) = json.loads(joined.read_text())["rows"]
    assert row["wer"] == {"0": 4.0, "1": 5.5, "2": 6.0}
    joined.write_text(joined.read_text().replace("2 epochs", "4 epochs"))
    with pytest.raises(SystemExit) as stop:
        machine("c", {3: 1.0}, joined)
    assert stop.value.code == 2 and "other trainings (4 epochs, not 2 epochs)" in capsys.readouterr().err


def test_nothing_to_show_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("default\tfull\n"))
    for output in ("stdin:1: expected name", "no scores there"):
        with pytest.raises(SystemExit) as stop:
            ablation.main(["--expdir", str(tmp_path), "--test_sets", "test", "--note", ""])
        assert stop.value.code == 2 and output in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin", io.StringIO(CONDITIONS))
