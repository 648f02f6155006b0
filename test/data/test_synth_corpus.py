"""The synthesised corpus: the seed alone decides its bytes, test voices are new, sentences are what the recipe says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.data import synth

pytest.importorskip("espeakng_loader")


def python(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as the recipe does: forks of this one would carry every thread of torch along."""
    return subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, timeout=120)


def make(directory: Path, *options: str) -> dict[str, bytes]:
    """Make the corpus; its files' contents by relative path."""
    directory.mkdir()
    sizes = ("--num_train", "5", "--num_valid", "2", "--num_test", "3")
    done = python("-m", "distill.bin.prepare_synth", *sizes, *options, cwd=directory)
    assert done.returncode == 0, done.stderr
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_same_seed_same_bytes(tmp_path):
    first = make(tmp_path / "1")
    assert len([name for name in first if name.endswith(".wav")]) == 10
    assert first == make(tmp_path / "2")
    assert first["data/train/text"] != make(tmp_path / "3", "--seed", "1")["data/train/text"]


def test_what_is_made_is_good_data(tmp_path):
    files = make(tmp_path / "1")
    done = python("-m", "distill.bin.check_data", "--data", "data/train", "data/valid", "data/test", cwd=tmp_path / "1")
    assert done.returncode == 0, done.stderr
    for name in files:
        if name.endswith(".wav"):
            samples, rate = soundfile.read(tmp_path / "1" / name)
            assert rate == 16000 and 0.3 < len(samples) / rate < 4 and np.abs(samples).max() > 0.01


def test_an_utterance_does_not_depend_on_what_was_said_before(tmp_path):
    (tmp_path / "say.py").write_text(
        "from distill.data.synth import Synthesiser, Voice\n"
        "say = Synthesiser()\n"
        "def one(): return say('call anna', Voice('en-us', 'f4'), 200, 50)\n"
        "first = one()\n"
        "other = say('call anna', Voice('en-029', 'm2'), 200, 50)\n"
        "assert (one() == first).all() and len(first) > 4000\n"
        "assert len(other) != len(first) or (other != first).any()\n"
    )
    done = python("say.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_unknown_speaker_is_refused(tmp_path):
    (tmp_path / "say.py").write_text(
        "from distill.data.synth import Synthesiser, Voice\n"
        "Synthesiser()('call anna', Voice('en-us', 'zoe'), 200, 50)\n"
    )
    assert "has no speaker zoe" in python("say.py", cwd=tmp_path).stderr


def test_every_voice_is_the_same_in_another_process(tmp_path):
    (tmp_path / "say.py").write_text(
        "import hashlib\n"
        "from distill.data.synth import TEST_SPEAKERS, TRAIN_SPEAKERS, VALID_SPEAKERS, Synthesiser, voices\n"
        "say = Synthesiser()\n"
        "for voice in voices(TRAIN_SPEAKERS + VALID_SPEAKERS + TEST_SPEAKERS):\n"
        "    print(voice.name, hashlib.sha256(say('call anna and robert', voice, 200, 50)).hexdigest())\n"
    )
    first = python("say.py", cwd=tmp_path).stdout
    assert first.count("\n") == 144 and first == python("say.py", cwd=tmp_path).stdout


def test_every_set_has_speakers_that_no_other_set_has():
    sets = (synth.TRAIN_SPEAKERS, synth.VALID_SPEAKERS, synth.TEST_SPEAKERS)
    everybody = [voice for speakers in sets for voice in synth.voices(speakers)]
    assert len({voice.speaker for voice in everybody}) == sum(map(len, sets)) == 72
    assert len({voice.name for voice in everybody}) == len(everybody) == 144
    for speakers in sets:
        assert {voice.accent for voice in synth.voices(speakers)} == set(synth.ACCENTS)


def test_sentences():
    rng = np.random.default_rng(0)
    sentences = [synth.sentence(rng).split() for _ in range(3000)]
    assert {len(words) for words in sentences} == set(range(2, 9))
    assert 30 <= len({word for words in sentences for word in words}) <= 60


def test_most_utterances_have_pauses_of_faint_noise():
    audio = 0.1 * np.sin(np.arange(8000) / 9.0)
    lengths, levels = [], []
    for seed in range(400):
        padded = synth.add_pauses(audio, np.random.default_rng(seed))
        if len(padded) == len(audio):
            np.testing.assert_array_equal(padded, audio)
            continue
        lengths.append((len(padded) - len(audio)) / 16000)
        correlation = np.correlate(padded, audio, "valid")
        at = int(np.argmax(correlation))
        noise = padded - np.pad(audio, (at, len(padded) - len(audio) - at))
        levels.append(20 * np.log10(np.sqrt(np.mean(noise**2))))
    assert len(lengths) / 400 == pytest.approx(0.6, abs=0.06)
    assert np.mean(lengths) == pytest.approx(0.6, abs=0.05) and 1.0 < max(lengths) <= 1.2
    assert min(levels) > -101 and max(levels) < -59
