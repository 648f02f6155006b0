"""The count of streams that a core holds, for runtimes whose computation takes a known time."""

import time

import numpy as np
import pytest

from distill.bench import streams
from distill.bench.streams import GRID, Runtime, delays, held


@pytest.fixture
def clock(monkeypatch):
    """Processor time that moves on when the runtime says so."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    return now


def runtime(clock: list[float], batch_s: float, stream_s: float, at_once: int | None) -> Runtime:
    def recognise(some, audio):
        assert len(audio) == streams.PIECE and (at_once is None or len(some) <= at_once)
        clock[0] += batch_s + stream_s * len(some)

    return Runtime(object, recognise, at_once)


def test_one_by_one_as_many_are_held_as_fit_into_a_chunk(clock):
    found = held(runtime(clock, 0.0, 0.0048, 1), 20)
    assert found["streams"] in (80, 100) and found["p99_ms"] <= 200
    assert found["busy"] == pytest.approx(found["streams"] * 0.0048 / 0.48, abs=0.05)


def test_what_a_batch_costs_is_shared(clock):
    """20 ms a batch and 2 ms a stream: one by one 21 fit into 480 ms, in batches 10 times as many would."""
    assert held(runtime(clock, 0.02, 0.002, 1), 20)["streams"] in (15, 20)
    assert 120 <= held(runtime(clock, 0.02, 0.002, None), 20)["streams"] <= 240


def test_a_delay_is_from_the_end_of_a_chunk_to_its_result(clock):
    late, busy = delays(runtime(clock, 0.0, 0.03, 1), [object()], 9.6)
    assert np.allclose(late, 0.03) and busy == pytest.approx(0.03 / 0.48, rel=0.1)
    assert held(runtime(clock, 0.0, 0.25, 1), 20)["streams"] == 0 and min(GRID) == 5
