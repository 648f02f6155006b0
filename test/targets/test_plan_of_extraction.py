"""What an extraction is planned to do: batches of a shard, advice when space is short, options that need a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_extraction import save_teacher

from distill.bin import extract_targets
from distill.data.batches import by_length
from distill.targets import space

STUDENT = {"front_end": "fbank", "front_end_conf": {"channels": 8}, "width": 8, "layers": 2, "heads": 2, "ffn": 8}


@given(st.lists(st.integers(1, 3000), max_size=30), st.integers(1, 6000))
def test_batches_are_full_and_hold_every_utterance_once(counts, limit):
    lengths = {f"u{n}": count for n, count in enumerate(counts)}
    result = by_length(lengths, limit)
    assert sorted(u for batch in result for u in batch) == sorted(lengths)
    for batch in result:
        assert len(batch) == 1 or max(lengths[u] for u in batch) * len(batch) <= limit
    for batch, following in zip(result, result[1:], strict=False):
        assert max(lengths[u] for u in batch) * (len(batch) + 1) > limit  # one more would not have fitted
        assert min(lengths[u] for u in batch) >= max(lengths[u] for u in following)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of an extraction from a teacher of four layers, for one utterance of a second."""
    monkeypatch.chdir(tmp_path)
    save_teacher(tmp_path / "teacher", seed=0)
    soundfile.write("u1.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16000), 16000)
    Path("wav.scp").write_text("u1 u1.wav\n")
    return ["--teacher", "teacher", "--wav_scp", "wav.scp", "--output", "targets"]


def test_advice_for_want_of_space(options, monkeypatch):
    advice = {}
    monkeypatch.setattr(space, "check_space", lambda place, needed, smaller: advice.update(smaller) or 10**12)
    extract_targets.main([*options, "--layers", "1,2,3,4", "--plan"])
    # 50 frames of 20 ms at two bytes: layers of 16 and logits of 5 numbers, and 55 bytes of each stream's header
    assert advice["--target_dtype float16"] == (4 * 16 + 5) * 50 * 2 + 5 * 55
    assert advice["every other layer as float16"] == (2 * 16 + 5) * 50 * 2 + 3 * 55
    assert advice["every other layer, compressed"] < advice["every other layer as float16"]


@pytest.mark.parametrize(("option", "target"), [("nbest", "pseudo"), ("posterior_top_k", "posterior")])
def test_a_target_without_its_graph_is_named(options, capsys, option, target):
    conf = {"network": "student", "network_conf": STUDENT, "distill_conf": {"target": target, option: 2}}
    Path("student.yaml").write_text(yaml.safe_dump(conf))
    with pytest.raises(SystemExit) as stopped:
        extract_targets.main([*options, "--student_config", "student.yaml", "--plan"])
    assert stopped.value.code == 2 and f"{option} needs the denominator graph" in capsys.readouterr().err
