"""Audio that is too long to be computed at once is refused, or computed in chunks."""

from pathlib import Path

import numpy as np
import pytest
import small_models
import soundfile

from distill.audio import MOST_AT_ONCE_S, SAMPLE_RATE
from distill.bin import compute_posteriors, decode, transcribe
from distill.checkpoints.load import load_network
from distill.data.batches import padded
from distill.errors import UserError
from distill.recognition.networks import batch_log_posteriors
from distill.streaming.recognizer import StreamingRecognizer
from distill.targets.compute import teacher_outputs
from distill.targets.wanted import Wanted

HOUR = 3600 * SAMPLE_RATE


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for kind in ("teacher", "full", "stream"):
        small_models.write_training(folder / kind, kind)
    audio = np.zeros(HOUR, np.int16)
    soundfile.write(folder / "hour.flac", audio, SAMPLE_RATE)
    soundfile.write(folder / "short.flac", audio[: 2 * SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(folder / "long.flac", audio[: (MOST_AT_ONCE_S + 5) * SAMPLE_RATE], SAMPLE_RATE)
    for name in ("hour", "long"):
        (folder / name).mkdir()
        (folder / name / "wav.scp").write_text(f"long-1 {folder}/{name}.flac\nshort-1 {folder}/short.flac\n")
    return folder


def refused(main, arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("kind", ["teacher", "full"])
def test_an_hour_with_full_context_is_refused_in_every_command(work, kind, tmp_path, capsys):
    model = ["--model", str(work / kind)]
    assert "hour.flac: at least 3600 s, but at most 120 s" in refused(
        transcribe.main, [*model, str(work / "hour.flac")], capsys
    )
    options = ["--data_dirs", str(work / "hour"), "--output", str(tmp_path), "--chunk_ms", "full", "--sample", "1"]
    assert "long-1: at least 3600 s" in refused(decode.main, [*model, *options], capsys)
    options = ["--data_dir", str(work / "hour"), "--output", f"ark:{tmp_path}/a.ark"]
    assert "long-1: at least 3600 s" in refused(compute_posteriors.main, [*model, *options], capsys)
    batch = padded(["long-1"], [np.zeros(HOUR, np.float32)])
    network = load_network(work / kind).network
    with pytest.raises(UserError, match="long-1: at least"):
        batch_log_posteriors(network, batch, [None])
    with pytest.raises(UserError, match="long-1: at least"):
        teacher_outputs(network, batch, Wanted([], 20), None)


def test_a_session_with_full_context_keeps_no_more_than_that(work):
    session = StreamingRecognizer.from_pretrained(work / "full", chunk_ms=None)
    piece = np.zeros(10 * SAMPLE_RATE, np.float32)
    for _ in range(MOST_AT_ONCE_S // 10):
        session.accept_waveform(piece)
    with pytest.raises(UserError, match="audio: at least 130 s"):
        session.accept_waveform(piece)


def test_a_streaming_student_recognises_what_is_longer_in_chunks(work, tmp_path, capsys):
    options = ["--data_dirs", str(work / "long"), "--output", str(tmp_path), "--chunk_ms", "480", "--sample", "1"]
    decode.main(["--model", str(work / "stream"), *options, "--batch_seconds", "1000"])
    rows = (tmp_path / "decode_480ms/long/hyp.1.jsonl").read_text().splitlines()
    assert len(rows) == 2 and '"long-1"' in "".join(rows)
