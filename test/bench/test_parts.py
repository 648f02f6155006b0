"""What benchmarks share."""

import os

from distill.bench.parts import warn_if_busy


def test_times_on_a_busy_machine_are_said_to_be(capsys, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 9.0, 9.0))
    warn_if_busy()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (7.26, 0.0, 0.0))
    warn_if_busy()
    assert capsys.readouterr().out == "note: a load of 7.3 on 2 cores; times are those of a busy machine\n"
