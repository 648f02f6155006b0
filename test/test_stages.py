"""A stage is skipped when nothing changed, gone on with when it was cut off, and stale when an input changed."""

from pathlib import Path

import pytest

from distill import stages as stage


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    config = tmp_path / "config.yaml"
    config.write_text("lr: 1\n")
    return tmp_path / "10", config


def finish(stamp: Path) -> None:
    stage.main(["finish", str(stamp)])


def test_done_and_unchanged_is_skipped(paths):
    stamp, config = paths
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.TO_DO
    finish(stamp)
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.DONE


def test_cut_off_is_gone_on_with(paths):
    stamp, config = paths
    stage.begin(stamp, "seed 0", [str(config)])
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.TO_DO


@pytest.mark.parametrize("finished", [True, False])
def test_changed_input_is_stale(paths, finished, capsys):
    stamp, config = paths
    stage.begin(stamp, "seed 0", [str(config)])
    if finished:
        finish(stamp)
    config.write_text("lr: 2\n")
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.STALE
    assert "config.yaml" in capsys.readouterr().out
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.TO_DO


def test_changed_option_is_stale(paths):
    stamp, config = paths
    stage.begin(stamp, "seed 0", [str(config)])
    finish(stamp)
    assert stage.begin(stamp, "seed 1", [str(config)]) == stage.STALE


def test_other_code_is_told_and_makes_nothing_stale(paths, monkeypatch, capsys):
    stamp, config = paths
    stage.begin(stamp, "", [str(config)])
    finish(stamp)
    before = stage.code_version()
    monkeypatch.setattr(stage, "code_version", lambda: "9.9+0123abcd")
    capsys.readouterr()
    assert stage.begin(stamp, "", [str(config)]) == stage.DONE
    assert f"stage 10: made by another version, {before}" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "null"])
def test_a_damaged_stamp_is_none(paths, content):
    stamp, config = paths
    stage.begin(stamp, "", [str(config)])
    finish(stamp)
    stamp.write_text(content)
    assert stage.begin(stamp, "", [str(config)]) == stage.TO_DO


def test_missing_input_is_one_line(paths, capsys):
    stamp, config = paths
    config.unlink()
    with pytest.raises(SystemExit) as ended:
        stage.main(["begin", str(stamp), str(config)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_finish_without_begin_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        finish(tmp_path / "3")
    assert ended.value.code == 2
    assert "begun" in capsys.readouterr().err
