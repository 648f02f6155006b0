"""Good audio is read as it is, bad audio is refused in one line that names the file and the cure."""

import re
import sys

import numpy as np
import omniio.kaldi
import pytest
import soundfile

from distill.audio import read_audio, read_wav_scp
from distill.containers import ogg_checksum
from distill.data.check_audio import check_audio
from distill.errors import UserError

SAMPLES = (0.5 * np.sin(np.arange(1600) / 5)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_reads_files(tmp_path, name):
    soundfile.write(tmp_path / name, SAMPLES, 16000)
    audio = read_audio(tmp_path / name)
    assert audio.dtype == np.float32 and audio.shape == (1600,)
    np.testing.assert_allclose(audio, SAMPLES, atol=1e-4)


def test_reads_an_ark(tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    scp = tmp_path / "wav.scp"
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/a.ark,{scp}") as writer:
        writer["u1"] = (16000, (SAMPLES * 32767).astype(np.int16))
        writer["u2"] = (8000, (SAMPLES * 32767).astype(np.int16))
    entries = read_wav_scp(scp)
    np.testing.assert_allclose(read_audio(entries["u1"]), SAMPLES, atol=1e-4)
    with pytest.raises(UserError, match="8000 Hz"):
        read_audio(entries["u2"])
    with pytest.raises(UserError, match="cannot be read"):
        read_audio(f"{tmp_path}/a.ark:17")


def test_an_ark_is_read_without_kaldiio(tmp_path, monkeypatch):
    with omniio.kaldi.WriteHelper(f"ark,scp:{tmp_path}/a.ark,{tmp_path}/wav.scp") as writer:
        writer["u1"] = (16000, (SAMPLES * 32767).astype(np.int16))
    monkeypatch.setitem(sys.modules, "kaldiio", None)  # importing it now fails
    np.testing.assert_allclose(read_audio(read_wav_scp(tmp_path / "wav.scp")["u1"]), SAMPLES, atol=1e-4)


def test_silence_clipping_and_one_sample_are_audio(tmp_path):
    for samples in (np.zeros(100), np.ones(100), np.zeros(1)):
        soundfile.write(tmp_path / "a.wav", samples, 16000)
        assert read_audio(tmp_path / "a.wav").shape == samples.shape


def test_a_length_left_open_by_a_pipe_is_no_error(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES, 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_audio(path)) == 1600


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and ";" in message
    return message


def test_missing(tmp_path):
    assert "no such audio file" in refused(tmp_path / "a.wav")


@pytest.mark.parametrize("size", [0, 3, 20, 36, 40, 43])
def test_truncated_header(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES, 16000)
    path.write_bytes(path.read_bytes()[:size])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_truncated_data(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, SAMPLES, 16000)
    path.write_bytes(path.read_bytes()[:-500])
    assert "cut off" in refused(path)


LONG = (0.3 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
FORMATS = {
    "WAV": "PCM_16", "WAVEX": "PCM_16", "RF64": "PCM_16", "W64": "PCM_16", "AIFF": "PCM_16", "AU": "PCM_16",
    "CAF": "PCM_16", "NIST": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III",
}  # fmt: skip


def stored(path, name: str) -> bytes:
    """Three seconds of noise in a format; it is read as it is."""
    container = "OGG" if name == "OPUS" else name
    soundfile.write(path, LONG, 16000, format=container, subtype=FORMATS[name])
    assert len(read_audio(path)) == check_audio(str(path), False) * 16000 == len(LONG)
    return path.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1])
def test_a_file_that_is_cut_off_anywhere(tmp_path, name, share):
    path = tmp_path / "a.audio"
    content = stored(path, name)
    path.write_bytes(content[: int(share * len(content))])
    refused(path)
    with pytest.raises(UserError):
        check_audio(str(path), False)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("MP3", "NIST")])
@pytest.mark.parametrize("factor", [0.02, 0.5, 0.95, 1.05, 2, 100])
def test_a_header_whose_length_is_a_lie(tmp_path, name, factor):
    path = tmp_path / "a.audio"
    content = bytearray(stored(path, name))
    plain = 2 * len(LONG)
    places = {
        "W64": (content.find(b"data\xf3") + 16, 8, "little", plain + 24), "RF64": (28, 8, "little", plain),
        "AIFF": (content.find(b"COMM") + 10, 4, "big", len(LONG)), "AU": (8, 4, "big", plain),
        "CAF": (content.find(b"data") + 4, 8, "big", plain + 4), "FLAC": (22, 4, "big", len(LONG)),
    }  # fmt: skip
    if name in ("OGG", "OPUS"):  # the time of the last page, with a checksum to match
        last = content.rindex(b"OggS")
        time = int.from_bytes(content[last + 6 : last + 14], "little")
        content[last + 6 : last + 14] = int(time * factor).to_bytes(8, "little")
        content[last + 22 : last + 26] = bytes(4)
        content[last + 22 : last + 26] = ogg_checksum(bytes(content[last:])).to_bytes(4, "little")
    else:
        at, size, order, value = places.get(name, (content.find(b"data") + 4, 4, "little", plain))
        assert int.from_bytes(content[at : at + size], order) == value
        content[at : at + size] = int(value * factor).to_bytes(size, order)
    path.write_bytes(content)
    if name in ("OGG", "OPUS") and factor == 0.95:
        assert len(read_audio(path)) < len(LONG)  # so the end of a last page is cut where it is wanted
    else:
        refused(path)


def test_an_ogg_file_with_a_gap_or_a_flipped_bit(tmp_path):
    path = tmp_path / "a.ogg"
    content = stored(path, "OGG")
    pages = [found.start() for found in re.finditer(b"OggS", content)]
    path.write_bytes(content[: pages[2]] + content[pages[3] :])
    assert "does not follow" in refused(path)
    path.write_bytes(content[: pages[-1]])
    assert "last Ogg page is missing" in refused(path)
    path.write_bytes(content[: pages[3] + 60] + bytes([content[pages[3] + 60] ^ 1]) + content[pages[3] + 61 :])
    assert "is damaged" in refused(path)


def test_chunks_and_tags_behind_the_audio_are_no_fault(tmp_path):
    path = tmp_path / "a.wav"
    for name in ("WAV", "AIFF", "FLAC"):
        content = stored(path, name)
        for more in (b"TAG" + bytes(125), b"LIST\x04\0\0\0abcd" if name == "WAV" else b"", bytes(100)):
            path.write_bytes(content + more)
            assert len(read_audio(path)) == len(LONG)


@pytest.mark.parametrize("name", ["VOC", "AVR", "PAF", "SD2", "MAT5"])
def test_a_format_whose_end_cannot_be_told_is_refused(tmp_path, name):
    path = tmp_path / "a.audio"
    soundfile.write(path, LONG, 16000, format=name, subtype="PCM_16" if name != "MAT5" else "DOUBLE")
    assert f"is {name}, in which a truncated file looks like a whole one; convert it" in refused(path)


def test_not_audio(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 9)
    assert "cannot be read as audio" in refused(path)


def test_stereo(tmp_path):
    soundfile.write(tmp_path / "a b.wav", np.stack([SAMPLES, SAMPLES], 1), 16000)
    message = refused(tmp_path / "a b.wav")
    assert "2 channels" in message and f"sox '{tmp_path}/a b.wav' -r 16000 -c 1 OUT.wav" in message


def test_wrong_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", SAMPLES, 44100)
    message = refused(tmp_path / "a.wav")
    assert "44100 Hz" in message and "-r 16000 -c 1" in message


def test_no_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", SAMPLES[:0], 16000)
    assert "no samples" in refused(tmp_path / "a.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(tmp_path, bad):
    samples = SAMPLES.copy()
    samples[7] = bad
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert "sample 7" in refused(tmp_path / "a.wav")


def test_wav_scp(tmp_path):
    scp = tmp_path / "wav.scp"
    scp.write_text("u1 a b.wav\n\nu2 /c.ark:12\n")
    assert read_wav_scp(scp) == {"u1": "a b.wav", "u2": "/c.ark:12"}
    for text, reason in [
        ("u1 a.wav\nu1 b.wav\n", "wav.scp:2: utterance u1 occurs twice"),
        ("u1 a.wav\nu2\n", "wav.scp:2: utterance u2 has no path"),
        ("u1 sox a.wav -t wav - |\n", "wav.scp:1: is a command"),
        ("\n", "is empty"),
    ]:
        scp.write_text(text)
        with pytest.raises(UserError, match=reason):
            read_wav_scp(scp)
    with pytest.raises(UserError, match="not found"):
        read_wav_scp(tmp_path / "nowhere")
