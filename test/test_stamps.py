"""A stage is skipped when nothing changed, gone on with when it was cut off, and stale when an input changed."""

from pathlib import Path

import pytest

from distill import stamps as stage
from distill.bin import stage as command
from distill.errors import UserError


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    config = tmp_path / "config.yaml"
    config.write_text("lr: 1\n")
    return tmp_path / "10", config


def test_done_and_unchanged_is_skipped(paths):
    stamp, config = paths
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.TO_DO
    stage.finish(stamp)
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
        stage.finish(stamp)
    config.write_text("lr: 2\n")
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.STALE
    assert "config.yaml" in capsys.readouterr().out
    assert stage.begin(stamp, "seed 0", [str(config)]) == stage.TO_DO


def test_inputs_that_came_and_went_are_named_so(paths, capsys):
    stamp, config = paths
    other = config.with_name("other.yaml")
    other.touch()
    stage.begin(stamp, "", [str(config)])
    stage.begin(stamp, "", [str(other)])
    assert capsys.readouterr().out == (
        f"stage 10: changed since it was last run: {config} (no longer used), {other} (new)\n"
    )


def test_a_stage_that_was_not_run_is_named(tmp_path):
    missing = tmp_path / "exp/.stages/7_valid"
    with pytest.raises(UserError, match=f"stage 7 has not been run in {tmp_path}/exp; begin with --stage 7"):
        stage.begin(tmp_path / "12", "", [str(missing)])


def test_changed_option_is_stale(paths):
    stamp, config = paths
    stage.begin(stamp, "seed 0", [str(config)])
    stage.finish(stamp)
    assert stage.begin(stamp, "seed 1", [str(config)]) == stage.STALE


def test_other_code_is_told_and_makes_nothing_stale(paths, monkeypatch, capsys):
    stamp, config = paths
    stage.begin(stamp, "", [str(config)])
    stage.finish(stamp)
    before = stage.code_version()
    monkeypatch.setattr(stage, "code_version", lambda: "9.9+0123abcd")
    capsys.readouterr()
    assert stage.begin(stamp, "", [str(config)]) == stage.DONE
    assert f"stage 10: made by another version, {before}" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "null"])
def test_a_damaged_stamp_is_none(paths, content):
    stamp, config = paths
    stage.begin(stamp, "", [str(config)])
    stage.finish(stamp)
    stamp.write_text(content)
    assert stage.begin(stamp, "", [str(config)]) == stage.TO_DO


def test_missing_input_is_one_line(paths, capsys):
    stamp, config = paths
    config.unlink()
    with pytest.raises(SystemExit) as ended:
        command.main(["begin", str(stamp), str(config)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_finish_without_begin_is_refused(tmp_path):
    with pytest.raises(UserError, match="begun"):
        stage.finish(tmp_path / "3")


def test_a_stale_output_is_renamed_and_one_of_the_same_inputs_is_kept(paths, capsys):
    stamp, config = paths
    output = stamp.parent / "model"
    output.mkdir()
    assert stage.begin(stamp, "seed 0", [str(config)], output) == stage.TO_DO
    assert output.is_dir()
    config.write_text("lr: 2\n")
    assert stage.begin(stamp, "seed 0", [str(config)], output) == stage.STALE
    (aside,) = stamp.parent.glob("model.old-*")
    assert not output.exists() and str(aside) in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
def test_a_forced_stage_begins_anew(paths, finished):
    stamp, config = paths
    output = stamp.parent / "model"
    output.mkdir()
    stage.begin(stamp, "seed 0", [str(config)], output)
    if finished:
        stage.finish(stamp)
    assert stage.begin(stamp, "seed 0", [str(config)], output, force=True) == stage.STALE
    assert not output.exists()
    assert stage.begin(stamp, "seed 0", [str(config)], output) == stage.TO_DO


def test_exit_status_says_what_to_do(paths, capsys):
    stamp, config = paths
    for status, options in ((3, "--first"), (0, "--first"), (4, "--second")):
        with pytest.raises(SystemExit) as ended:
            command.main(["begin", str(stamp), f"--options={options}", str(config)])
        assert ended.value.code == status
        if status:
            command.main(["finish", str(stamp)])
