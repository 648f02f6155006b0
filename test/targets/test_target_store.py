import json
import subprocess
import sys

import kaldiio
import numpy as np
import omniio.kaldi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.targets import checks, space, store


def write_shard(directory, dtype, matrices, **kwargs):
    with store.TargetWriter(directory, dtype, {"dtype": dtype}, **kwargs) as writer:
        for utterance, streams in matrices.items():
            writer.write(utterance, streams)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("float16", 1e-4), ("compressed", 0.05)])
def test_both_readers_read_what_was_written(tmp_path, dtype, tolerance):
    rng = np.random.default_rng(0)
    matrices = {f"utt{i}": {"logits": rng.normal(size=(20 + i, 4)).astype(np.float32)} for i in (2, 1, 3)}
    write_shard(tmp_path / "s", dtype, matrices)
    scp = tmp_path / "s" / "logits.scp"
    assert [line.split()[0] for line in scp.read_text().splitlines()] == ["utt1", "utt2", "utt3"]
    for reader in (kaldiio, omniio.kaldi):
        read = reader.load_scp(str(scp))
        for utterance, streams in matrices.items():
            assert np.abs(read[utterance] - streams["logits"]).max() <= tolerance


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
sys.modules["kaldiio"] = None
import numpy as np
from distill.targets import store
x = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
with store.TargetWriter({str(tmp_path)!r}, {dtype!r}, {{}}) as writer:
    writer.write("u1", {{"logits": x}})
assert store.load_scp.__module__.startswith("omniio"), store.load_scp
assert np.abs(store.read_targets({str(tmp_path)!r}, "logits")["u1"] - x).max() <= {tolerance}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    expected = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
    assert np.abs(kaldiio.load_scp(f"{tmp_path}/logits.scp")["u1"] - expected).max() <= tolerance


def test_arks_are_bounded(tmp_path):
    write_shard(tmp_path / "s", "float32", {f"u{i}": {"a": np.ones((50, 2))} for i in range(6)}, ark_bytes=1000)
    arks = sorted((tmp_path / "s").glob("*.ark"))
    assert len(arks) == 2 or len(arks) == 3
    assert all(ark.stat().st_size < 1000 + 450 for ark in arks)
    assert len(store.read_targets(tmp_path / "s", "a")) == 6


def test_an_interrupted_shard_is_not_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with store.TargetWriter(tmp_path / "s", "float32", {"dtype": "float32"}) as writer:
            writer.write("a", {"x": np.ones((2, 2))})
            raise KeyboardInterrupt
    assert not store.shard_done(tmp_path / "s", {"dtype": "float32"})
    write_shard(tmp_path / "s", "float32", {"a": {"x": np.ones((2, 2))}})
    assert store.shard_done(tmp_path / "s", {"dtype": "float32"})
    assert not store.shard_done(tmp_path / "s", {"dtype": "float16"})


@given(st.sets(st.text("abcxyz-_09", min_size=1, max_size=6), max_size=60), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_shards_hold_every_utterance_once_in_order(utterances, size):
    cut = store.shards(utterances, size)
    assert [u for shard in cut for u in shard] == sorted(utterances, key=str.encode)
    assert all(1 <= len(shard) <= size for shard in cut)


def test_plan_is_close_to_what_is_written(tmp_path):
    for dtype in store.COMPRESSION:
        frames, dimensions = [100, 37], {"hidden_02": 16, "logits": 5, "posterior_ids": 3}
        matrices = {
            f"u{i}": {name: np.random.randn(t, d) for name, d in dimensions.items()} for i, t in enumerate(frames)
        }
        write_shard(tmp_path / dtype, dtype, matrices)
        real = sum(f.stat().st_size for f in (tmp_path / dtype).glob("*.ark"))
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
    assert store.audio_checksum(str(a)) == store.audio_checksum(str(b))
    b.write_bytes(b"x" * 299_999 + b"y")
    assert store.audio_checksum(str(a)) != store.audio_checksum(str(b))
    b.write_bytes(b"x" * 300_001)
    assert store.audio_checksum(str(a)) != store.audio_checksum(str(b))
    with pytest.raises(UserError, match="c.wav"):
        store.audio_checksum(str(tmp_path / "c.wav"))


def test_manifest_refuses_another_teacher_and_other_audio(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.targets.checks.model_checksum", lambda directory: f"checksum of {directory}")
    (tmp_path / "a.wav").write_bytes(b"one")
    wav_scp, out = tmp_path / "wav.scp", tmp_path / "targets"
    wav_scp.write_text(f"a {tmp_path}/a.wav\n")
    write_shard(out / "data" / "0001", "float32", {"a": {"logits": np.ones((2, 2))}})
    audio = {"a": store.audio_checksum(str(tmp_path / "a.wav"))}
    manifest = {"teacher": "checksum of T", "streams": {"logits": 2}, "audio": store.audio_list_checksum(audio)}
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
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_merge_refuses_missing_utterances(tmp_path):
    write_shard(tmp_path / "data" / "0001", "float32", {"a": {"logits": np.ones((2, 2))}})
    with pytest.raises(UserError, match="lacks 1"):
        store.merge(tmp_path, ["0001"], {"streams": {"logits": 2}}, {"a": "1", "b": "2"})
    assert not (tmp_path / "manifest.json").exists()
