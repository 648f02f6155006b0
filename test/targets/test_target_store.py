import json
import pickle
import subprocess
import sys

import kaldiio
import numpy as np
import omniio.kaldi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.targets import checks, shards, space, store
from distill.targets.audio_checksums import audio_checksum


def write_shard(shard, dtype, matrices):
    with store.TargetWriter(shard, dtype, {"dtype": dtype}) as writer:
        for utterance, streams in matrices.items():
            writer.write(utterance, streams)


def write_set(directory, dtype, matrices, shards=1):
    """Targets of a whole set; each utterance goes to the shard of its first matrix, in order."""
    ordered = sorted(matrices, key=str.encode)
    names = [f"{number + 1:04d}" for number in range(shards)]
    for number, name in enumerate(names):
        part = ordered[number * len(ordered) // shards : (number + 1) * len(ordered) // shards]
        write_shard(directory / "data" / name, dtype, {utterance: matrices[utterance] for utterance in part})
    audio = dict.fromkeys(ordered, "0" * 16)
    manifest = {"version": store.VERSION, "teacher": "T", "streams": list(matrices[ordered[0]])}
    store.merge(directory, names, manifest | {"audio": store.audio_list_checksum(audio)}, audio)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("float16", 1e-4), ("compressed", 0.05)])
def test_every_reader_reads_what_was_written(tmp_path, dtype, tolerance):
    rng = np.random.default_rng(0)
    matrices = {
        f"utt{i}": {"logits": rng.normal(size=(20 + i, 4)), "hidden_02": rng.normal(size=(20 + i, 9))}
        for i in (2, 1, 3, 5)
    }
    write_set(tmp_path / "s", dtype, matrices, shards=2)
    for stream in ("logits", "hidden_02"):
        scp = tmp_path / "s" / f"{stream}.scp"
        assert [line.split()[0] for line in scp.read_text().splitlines()] == ["utt1", "utt2", "utt3", "utt5"]
        readers = [reader.load_scp(str(scp)) for reader in (kaldiio, omniio.kaldi)]
        for read in (*readers, store.read_targets(tmp_path / "s", stream)):
            assert sorted(read) == sorted(matrices)
            for utterance, streams in matrices.items():
                assert read[utterance].shape == streams[stream].shape
                assert np.abs(read[utterance] - streams[stream]).max() <= max(tolerance, 1e-6)


def test_a_shard_is_two_files(tmp_path):
    matrices = {f"u{i}": {f"hidden_{n:02d}": np.ones((3, 2)) for n in range(12)} for i in range(30)}
    write_set(tmp_path, "float32", matrices, shards=3)
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == ["0001.ark", "0001.idx", "0002.ark", "0002.idx", "0003.ark", "0003.idx"]


def test_the_streams_of_an_utterance_are_adjacent_and_in_the_order_of_writing(tmp_path):
    """A training that reads an utterance, and then the next one that was written, reads the ark from end to end."""
    streams = ("logits", "hidden_04", "hidden_02")
    write_set(tmp_path, "float32", {u: {s: np.ones((4, 2)) for s in streams} for u in ("b", "a", "c")})
    targets = store.StoredTargets(tmp_path)
    places = [int(place) for u in ("a", "b", "c") for place in targets.offsets[targets.rows[u]]]
    assert places == sorted(places)
    assert places[-1] == (tmp_path / "data" / "0001.ark").stat().st_size
    for before, after in zip(places, places[1:], strict=False):
        assert after - before <= 4 * 2 * 4 + 40  # nothing but a matrix and its header


def test_a_reader_keeps_few_arks_open_and_survives_pickling(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OPEN_ARKS", 2)
    matrices = {f"u{i}": {"logits": np.full((2, 2), float(i))} for i in range(8)}
    write_set(tmp_path, "float32", matrices, shards=8)
    stream = store.read_targets(tmp_path, "logits")
    for number in (0, 7, 3, 0, 5, 7):
        assert stream[f"u{number}"][0, 0] == number
        assert len(stream._targets._open) <= 2
    assert pickle.loads(pickle.dumps(stream))["u4"][0, 0] == 4


def test_each_library_reads_the_others_arks(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    for writer, reader in ((kaldiio, omniio.kaldi), (omniio.kaldi, kaldiio)):
        ark = tmp_path / "x.ark"
        with open(ark, "wb") as stream:
            writer.save_ark(stream, {"a": x}, compression_method=3)
        assert np.abs(reader.load_mat(f"{ark}:2") - x).max() < 1e-3


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("float16", 1e-4), ("compressed", 0.05)])
def test_without_kaldiio_targets_are_written_and_read_by_omniio(tmp_path, dtype, tolerance):
    program = f"""
import sys
from pathlib import Path
sys.modules["kaldiio"] = None
import numpy as np
from distill.targets import store
x = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
with store.TargetWriter({str(tmp_path / "data" / "0001")!r}, {dtype!r}, {{}}) as writer:
    writer.write("u1", {{"logits": x}})
store.merge(Path({str(tmp_path)!r}), ["0001"], {{"streams": ["logits"]}}, {{"u1": "0"}})
assert store.read_matrix.__module__.startswith("omniio"), store.read_matrix
assert np.abs(store.read_targets({str(tmp_path)!r}, "logits")["u1"] - x).max() <= {tolerance}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    expected = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
    assert np.abs(kaldiio.load_scp(f"{tmp_path}/logits.scp")["u1"] - expected).max() <= tolerance


def test_an_interrupted_shard_is_not_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with store.TargetWriter(tmp_path / "s", "float32", {"dtype": "float32"}) as writer:
            writer.write("a", {"x": np.ones((2, 2))})
            raise KeyboardInterrupt
    assert not store.shard_done(tmp_path / "s", {"dtype": "float32"})
    write_shard(tmp_path / "s", "float32", {"a": {"x": np.ones((2, 2))}})
    assert store.shard_done(tmp_path / "s", {"dtype": "float32"})
    assert not store.shard_done(tmp_path / "s", {"dtype": "float16"})


@given(
    st.dictionaries(st.text("abcxyz-_09", min_size=1, max_size=6), st.integers(0, 9000), max_size=60), st.integers(1, 9)
)
@settings(max_examples=50, deadline=None)
def test_shards_hold_every_utterance_once_in_order_and_are_equally_long(milliseconds, count):
    parts = list(shards.shards(milliseconds, shards.cut(milliseconds, count)).values())
    assert [u for part in parts for u in part] == sorted(milliseconds, key=str.encode)
    assert len(parts) <= count
    total, longest = sum(milliseconds.values()), max(milliseconds.values(), default=0)
    assert all(sum(milliseconds[u] for u in part) <= total / count + longest for part in parts)


@pytest.mark.parametrize(
    ("utterances", "hours", "size", "count"),
    [
        (520, 0.1, 10**6, 9),  # few utterances
        (281_000, 960, 8_500 * 10**9, 900),  # float32, every layer: longer shards rather than more
        (281_000, 960, 2 * 10**9, 900),
        (28_000, 100, 2 * 10**9, 100),  # an hour
        (28_000, 100, 200 * 10**9, 187),  # a gibibyte
        (8_300_000, 10_000, 40 * 10**9, 900),
        (1, 0.001, 10, 1),
    ],
)
def test_shards_are_of_an_hour_or_a_gibibyte_and_not_too_many(utterances, hours, size, count):
    assert shards.number_of_shards(utterances, int(hours * 3_600_000), size) == count


def test_a_cut_is_kept_when_utterances_change_and_made_anew_for_other_contents(tmp_path):
    milliseconds = {f"u{n:03d}": 1000 for n in range(100)}

    def planned(contents, utterances):
        return shards.planned_shards(
            tmp_path / "shards.json", contents, utterances, lambda: shards.cut(utterances, len(contents))
        )

    before = planned("four", milliseconds)
    assert [len(part) for part in before.values()] == [25] * 4
    grown = planned("four", {**milliseconds, "u030a": 9000, "t": 1000})
    changed = [name for name in before if grown[name] != before[name]]
    assert changed == ["0001", "0002"] and "u030a" in grown["0002"] and "t" in grown["0001"]
    lacking = planned("four", {u: ms for u, ms in milliseconds.items() if not u.startswith("u06")})
    assert [name for name in before if lacking[name] != before[name]] == ["0003"]
    assert planned("three", milliseconds) != before
    doubled = planned("three", {**milliseconds, **{f"v{n:03d}": 1000 for n in range(101)}})
    assert "v000" not in doubled["0001"] and len(doubled) == 5 and len(doubled["0005"]) > 30


def test_plan_is_close_to_what_is_written(tmp_path):
    for dtype in ("float32", "float16", "compressed"):
        frames, dimensions = [100, 37], {"hidden_02": 16, "logits": 5, "posterior_ids": 3}
        matrices = {
            f"u{i}": {name: np.random.randn(t, d) for name, d in dimensions.items()} for i, t in enumerate(frames)
        }
        write_shard(tmp_path / dtype, dtype, matrices)
        real = store.ark_path(tmp_path / dtype).stat().st_size
        assert (
            real
            <= space.planned_bytes([20 * t for t in frames], {n: (d, 20) for n, d in dimensions.items()}, dtype)
            <= real + 300
        )


def test_too_small_a_disk_is_refused(tmp_path):
    smaller = {"one byte": 10**6, "two bytes": 10**17}
    with pytest.raises(
        UserError, match=r"what fits: one byte \(0.0 GB\), an online teacher \(--teacher_targets online\)"
    ):
        space.check_space(tmp_path / "new" / "dir", 10**18, smaller)


def test_audio_checksum_sees_content_not_name_or_time(tmp_path):
    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    a.write_bytes(b"x" * 300_000)
    b.write_bytes(b"x" * 300_000)
    assert audio_checksum(str(a)) == audio_checksum(str(b))
    b.write_bytes(b"x" * 299_999 + b"y")
    assert audio_checksum(str(a)) != audio_checksum(str(b))
    b.write_bytes(b"x" * 300_001)
    assert audio_checksum(str(a)) != audio_checksum(str(b))
    with pytest.raises(UserError, match="c.wav"):
        audio_checksum(str(tmp_path / "c.wav"))


def test_manifest_refuses_another_teacher_and_other_audio(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.targets.checks.model_checksum", lambda directory: f"checksum of {directory}")
    (tmp_path / "a.wav").write_bytes(b"one")
    wav_scp, out = tmp_path / "wav.scp", tmp_path / "targets"
    wav_scp.write_text(f"a {tmp_path}/a.wav\n")
    write_shard(out / "data" / "0001", "float32", {"a": {"logits": np.ones((2, 2))}})
    audio = {"a": audio_checksum(str(tmp_path / "a.wav"))}
    manifest = {"teacher": "checksum of T", "streams": {"logits": 2}, "audio": store.audio_list_checksum(audio)}
    manifest["version"] = store.VERSION
    store.merge(out, ["0001"], manifest, audio)
    assert checks.check_manifest(out, "T", wav_scp)["streams"] == {"logits": 2}
    with pytest.raises(UserError, match="another teacher"):
        checks.check_manifest(out, "other", wav_scp)
    (tmp_path / "a.wav").write_bytes(b"two")
    with pytest.raises(UserError, match="audio of a .* has changed"):
        checks.check_manifest(out, "T", wav_scp)
    wav_scp.write_text(f"a {tmp_path}/a.wav\nb {tmp_path}/a.wav\n")
    (tmp_path / "a.wav").write_bytes(b"one")
    with pytest.raises(UserError, match="no targets of b"):
        checks.check_manifest(out, "T", wav_scp)
    (out / "audio.sha256").write_text("b 123\n")
    with pytest.raises(UserError, match="audio.sha256"):
        checks.check_manifest(out, "T", wav_scp)
    written = json.loads((out / "manifest.json").read_text())
    assert written.pop("merged") and written == manifest
    (out / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(UserError, match="layout of another version"):
        checks.check_manifest(out, "T", wav_scp)


def test_merge_refuses_missing_utterances(tmp_path):
    write_shard(tmp_path / "data" / "0001", "float32", {"a": {"logits": np.ones((2, 2))}})
    with pytest.raises(UserError, match="lacks 1"):
        store.merge(tmp_path, ["0001"], {"streams": {"logits": 2}}, {"a": "1", "b": "2"})
    assert not (tmp_path / "manifest.json").exists()
