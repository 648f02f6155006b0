import json
import pickle
import subprocess
import sys
import zlib

import kaldiio
import numpy as np
import omniio.kaldi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.targets import checks, shards, space, store
from distill.targets.audio_checksums import audio_checksum

AUDIO = "0123456789abcdef"  # checksum of an utterance's audio


def write_shard(shard, dtype, matrices, audio=AUDIO):
    with store.TargetWriter(shard, dtype, {"dtype": dtype}, dict.fromkeys(matrices, audio)) as writer:
        for utterance, streams in matrices.items():
            writer.write(utterance, streams)


def write_set(directory, dtype, matrices, shards=1):
    """Targets of a whole set, whose shards hold sorted utterances, each in the order of ``matrices``."""
    ordered = sorted(matrices, key=str.encode)
    names = [f"{number + 1:04d}" for number in range(shards)]
    for number, name in enumerate(names):
        part = ordered[number * len(ordered) // shards : (number + 1) * len(ordered) // shards]
        write_shard(
            directory / "data" / name, dtype, {utterance: x for utterance, x in matrices.items() if utterance in part}
        )
    manifest = {"version": store.VERSION, "teacher": "T", "dtype": dtype, "streams": list(matrices[ordered[0]])}
    store.merge(directory, names, manifest, matrices)


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
    rows = [targets.rows[u] for u in ("b", "a", "c")]
    assert targets.starts[rows].tolist() == [0, *targets.sizes[rows].sum(1).cumsum()[:-1]]
    assert targets.sizes.sum() == (tmp_path / "data" / "0001.ark").stat().st_size
    assert targets.sizes.max() <= 4 * 2 * 4 + 40  # nothing but a matrix, its header and its key


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
with store.TargetWriter({str(tmp_path / "data" / "0001")!r}, {dtype!r}, {{}}, {{"u1": {AUDIO!r}}}) as writer:
    writer.write("u1", {{"logits": x}})
store.merge(Path({str(tmp_path)!r}), ["0001"], {{"dtype": {dtype!r}, "streams": ["logits"]}}, ["u1"])
assert store.read_matrix.__module__.startswith("omniio"), store.read_matrix
assert np.abs(store.read_targets({str(tmp_path)!r}, "logits")["u1"] - x).max() <= {tolerance}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    expected = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
    assert np.abs(kaldiio.load_scp(f"{tmp_path}/logits.scp")["u1"] - expected).max() <= tolerance


def test_an_interrupted_shard_is_not_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with store.TargetWriter(tmp_path / "s", "float32", {"dtype": "float32"}, {"a": AUDIO}) as writer:
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
    logits = {"a": {"logits": np.ones((2, 2))}}
    write_shard(out / "data" / "0001", "float32", logits, audio_checksum(str(tmp_path / "a.wav")))
    manifest = {"teacher": "checksum of T", "dtype": "float32", "streams": {"logits": 2}, "version": store.VERSION}
    store.merge(out, ["0001"], manifest, ["a"])

    def check(teacher):
        return checks.check_manifest(store.StoredTargets(out), teacher, wav_scp)

    assert check("T")["streams"] == {"logits": 2}
    with pytest.raises(UserError, match="another teacher"):
        check("other")
    (tmp_path / "a.wav").write_bytes(b"two")
    with pytest.raises(UserError, match="audio of a .* has changed"):
        check("T")
    wav_scp.write_text(f"a {tmp_path}/a.wav\nb {tmp_path}/a.wav\n")
    (tmp_path / "a.wav").write_bytes(b"one")
    with pytest.raises(UserError, match="no targets of b"):
        check("T")
    write_shard(out / "data" / "0002", "float32", {"b": {"logits": np.ones((2, 2))}})
    with pytest.raises(UserError, match="manifest.json: not that of these shards; extract again"):
        check("T")
    written = json.loads((out / "manifest.json").read_text())
    assert written.pop("merged") and written == manifest
    (out / "manifest.json").write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(UserError, match="layout of another version; extract the targets again"):
        check("T")


def codes(frames, width=3):
    return (np.arange(frames * width) % 251).astype(np.uint8).reshape(frames, width)


def test_codes_take_their_bytes_and_nothing_else(tmp_path):
    """Lengths follow from the index; an utterance without frames is one of no bytes; posteriors stay Kaldi matrices."""
    rng = np.random.default_rng(0)
    matrices = {
        f"u{i}": {"hidden_02": codes(frames), "posterior": rng.random((frames + 1, 4)), "logits": codes(frames, 7)}
        for i, frames in enumerate((9, 0, 30_000, 1))
    }
    write_set(tmp_path, "codebook", matrices, shards=2)
    for utterance, streams in matrices.items():
        for name, expected in streams.items():
            actual = store.read_targets(tmp_path, name)[utterance]
            assert actual.shape == expected.shape
            assert actual.dtype == (np.float32 if name == "posterior" else np.int16)
            assert np.abs(actual - expected).max(initial=0.0) <= (0.05 if name == "posterior" else 0.0)
    only = {u: {"logits": streams["logits"]} for u, streams in matrices.items()}
    write_set(tmp_path / "only", "codebook", only)
    assert (tmp_path / "only/data/0001.ark").read_bytes() == b"".join(x["logits"].tobytes() for x in only.values())


def test_codes_have_no_scps_and_those_of_earlier_layouts_and_formats_are_removed(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("hidden_02.scp", "audio.sha256"):
        (tmp_path / name).write_text("u1 1\n")
    write_set(tmp_path, "float32", {"u1": {"logits": np.ones((2, 2))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "logits.scp", "manifest.json"]
    write_set(tmp_path, "codebook", {"u1": {"logits": codes(4)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "manifest.json"]
    assert json.loads((tmp_path / "manifest.json").read_text())["merged"]["files"] == {}


def test_an_index_is_a_line_of_json_and_compressed_lines_in_the_order_of_the_ark(tmp_path):
    matrices = {u: {"hidden_02": codes(n), "logits": codes(n, 2)} for n, u in enumerate(("c", "a", "ö", "b"), 5)}
    write_shard(tmp_path / "0001", "codebook", matrices)
    head, _, body = (tmp_path / "0001.idx").read_bytes().partition(b"\n")
    header = json.loads(head)
    assert header["dtype"] == "codebook"
    assert (header["streams"], header["widths"]) == (["hidden_02", "logits"], [3, 2])
    assert zlib.decompress(body).decode().splitlines() == [
        *(f"c {AUDIO} 15 10", f"a {AUDIO} 18 12"),
        *(f"ö {AUDIO} 21 14", f"b {AUDIO} 24 16"),
    ]
    before = (tmp_path / "0001.idx").read_bytes()
    write_shard(tmp_path / "0001", "codebook", matrices)
    assert (tmp_path / "0001.idx").read_bytes() == before


def test_shards_of_other_streams_or_widths_are_refused(tmp_path):
    for other in ({"logits": codes(4, 2)}, {"hidden_02": codes(4)}):
        write_shard(tmp_path / "data" / "0001", "codebook", {"a": {"logits": codes(4)}})
        write_shard(tmp_path / "data" / "0002", "codebook", {"b": other})
        with pytest.raises(UserError, match="0002.idx: other streams than the other shards; extract again"):
            store.StoredTargets(tmp_path)


def test_utterances_of_other_streams_or_widths_are_no_shard(tmp_path):
    for other in ({"logits": codes(4, 2)}, {"logits": np.ones((4, 3))}, {"hidden_02": codes(4)}):
        with pytest.raises(ValueError, match="b has other streams"):
            write_shard(tmp_path / "0001", "codebook", {"a": {"logits": codes(4)}, "b": other})
        assert not (tmp_path / "0001.idx").exists()


@pytest.mark.parametrize(
    ("widths", "lines"),
    [
        ([3, 2], f"a {AUDIO} 15 10\n"),  # not all bytes of the ark
        ([3, 2], f"a {AUDIO} 16 9\nb {AUDIO} 18 12\n"),  # no whole frames
        ([3, 2], f"a {AUDIO} 33 24\nb {AUDIO} 0 -2\n"),
        ([3, 2], f"a {AUDIO} 15\nb {AUDIO} 40\n"),
        ([3, 2], f"a {AUDIO} 15 x\nb {AUDIO} 18 22\n"),
        ([3, 2], f"a {AUDIO} 15 10\nb {AUDIO[1:]} 18 12\n"),
        ([3, 2], f"a {AUDIO} 15 10\nb {'g' * 16} 18 12\n"),
        ([3, 2], f"a {AUDIO} 15 10\nb {AUDIO * 2} 18 12\n"),
        ([3, 2], f"a {AUDIO} 15 10\nb {AUDIO} {10**30} 12\n"),
        ([3, 2], ""),
        ([1], f"a {AUDIO} 15 10\nb {AUDIO} 18 12\n"),
        ([3, -2], f"a {AUDIO} 15 10\nb {AUDIO} 18 12\n"),
        ([3, 10**30], f"a {AUDIO} 15 10\nb {AUDIO} 18 12\n"),
        (None, f"a {AUDIO} 15 10\nb {AUDIO} 18 12\n"),
    ],
)
def test_an_index_that_does_not_fit_its_ark_is_refused(tmp_path, widths, lines):
    """Even where its own checksum is right."""
    shard = tmp_path / "data" / "0001"
    matrices = {
        "a": {"hidden_02": codes(5), "logits": codes(5, 2)},
        "b": {"hidden_02": codes(6), "logits": codes(6, 2)},
    }
    write_shard(shard, "codebook", matrices)
    assert store.StoredTargets(tmp_path).rows == {"a": 0, "b": 1}
    header, body = store.read_header(shard), zlib.compress(lines.encode())
    header |= {"widths": widths, "index": [len(body), zlib.crc32(body)]}
    store.index_path(shard).write_bytes(json.dumps(header).encode() + b"\n" + body)
    with pytest.raises(
        UserError, match="0001.idx: (not the lines that were written|missing or damaged); extract again"
    ):
        store.StoredTargets(tmp_path)
    assert checks.find_damage(shard, contents=False) is not None


def test_merge_refuses_missing_utterances(tmp_path):
    write_shard(tmp_path / "data" / "0001", "float32", {"a": {"logits": np.ones((2, 2))}})
    with pytest.raises(UserError, match="lacks 1"):
        store.merge(tmp_path, ["0001"], {"dtype": "float32", "streams": {"logits": 2}}, ["a", "b"])
    assert not (tmp_path / "manifest.json").exists()
