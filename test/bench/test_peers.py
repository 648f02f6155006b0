"""The benchmark beside a peer, without the peer."""

import importlib.util

import pytest

from distill.bench import peers


def test_without_speechbrain_one_line_names_the_cure(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        peers.main([])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and "make bench-peers" in error
