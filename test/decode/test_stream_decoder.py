"""Results of a stream: endpoints, times and texts, on scores of torch and of numpy."""

import numpy as np
import pytest
import torch

from distill.audio import SILENT
from distill.decode.greedy import GreedySearch
from distill.decode.stream_results import StreamDecoder
from distill.errors import UserError

TOKENS = ["<blank>", "a", "b", "<space>"]
FRAME_MS, CHUNK = 20, 4


def scores(path: str, kind: str = "numpy"):
    """(t, V) logits whose most probable token is each letter of a path; - is blank."""
    logits = 8 * np.eye(len(TOKENS), dtype=np.float32)[["-ab ".index(letter) for letter in path]]
    return torch.from_numpy(logits) if kind == "torch" else logits


def decoder(endpoint_ms: int | None = None) -> StreamDecoder:
    return StreamDecoder(TOKENS, "char", FRAME_MS, endpoint_ms, GreedySearch)


def events(results: list) -> list[tuple[str, str]]:
    return [(result["event"], result["text"]) for result in results]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_utterance_ends_at_the_end_of_the_chunk_in_which_the_silence_is_long_enough(kind):
    stream = decoder(endpoint_ms=60)
    stream.receive(np.ones(16000))
    # After "a" there are 2 and then 3 blank frames at the ends of chunks; 60 ms are 3 of them.
    assert events(stream.accept(scores("-a--", kind), CHUNK)) == [("partial", "a")]
    assert events(stream.accept(scores("----", kind), CHUNK)) == [("final", "a")]
    assert events(stream.accept(scores("a---", kind), CHUNK)) == [("final", "a")]
    assert events(stream.accept(scores("----", kind), CHUNK)) == [("partial", "")]
    assert events([stream.finish()]) == [("final", "")]


@pytest.mark.parametrize("level", [0.0, SILENT])
def test_nothing_is_recognised_before_the_first_sound(level):
    """30 s of silence, with which a network guesses words, and then a sound."""
    frames, chunk_samples = 30 * 1000 // FRAME_MS, CHUNK * FRAME_MS * 16
    stream = decoder(endpoint_ms=60)
    shown = []
    for _ in range(frames // CHUNK):
        stream.receive(np.full(chunk_samples, level))
        shown += stream.accept(scores("a-b-"), CHUNK)
    assert {(result["event"], result["text"]) for result in shown} == {("partial", "")}
    for _ in range(2):  # the guess ends in the silence after it
        stream.receive(np.full(chunk_samples, level))
        assert not any(result["text"] for result in stream.accept(scores("----"), CHUNK))
    stream.receive(np.full(chunk_samples, 2 * SILENT))
    assert events(stream.accept(scores("-ab-"), CHUNK)) == [("partial", "ab")]
    assert events([stream.finish()]) == [("final", "ab")] and stream.hypotheses[0].tokens
    stream.reset()
    stream.receive(np.full(480000, level))
    stream.accept(scores("ab" * (frames // 2)), frames)
    assert events([stream.finish()]) == [("final", "")] and not stream.hypotheses[0].tokens


def test_silence_within_a_chunk_ends_nothing():
    stream = decoder(endpoint_ms=20)
    stream.receive(np.ones(16000))
    assert events(stream.accept(scores("a--b"), CHUNK)) == [("partial", "ab")]


def test_endpoints_do_not_depend_on_how_many_chunks_come_at_once():
    path = "-aa-----b---ab--------a-"
    at_once, one_by_one = decoder(60), decoder(60)
    for stream in (at_once, one_by_one):
        stream.receive(np.ones(160000))
    finals = [result for result in at_once.accept(scores(path), CHUNK) if result["event"] == "final"]
    others = []
    for start in range(0, len(path), CHUNK):
        others += one_by_one.accept(scores(path[start : start + CHUNK]), CHUNK)
    others = [result for result in others if result["event"] == "final"]
    assert len(finals) == len(others) >= 3
    for result, other in zip(finals, others, strict=True):
        assert {**result, "emitted_after_s": 0} == {**other, "emitted_after_s": 0}


def test_times_are_those_of_the_stream_and_end_with_the_audio():
    stream = decoder(endpoint_ms=40)
    stream.receive(np.ones(int(0.17 * 16000)))
    stream.accept(scores("-a--"), CHUNK)
    (final,) = [stream.finish(scores("-bbbbb"))]
    assert [(token["start_s"], token["end_s"]) for token in final["tokens"]] == [(0.1, 0.17)]
    assert final["audio_s"] == 0.17


def test_a_token_that_may_continue_is_made_again_and_no_other():
    stream = decoder()
    stream.receive(np.ones(16000))
    (first,) = stream.accept(scores("a-bb"), CHUNK)
    (second,) = stream.accept(scores("b---"), CHUNK)
    (third,) = stream.accept(scores("---a"), CHUNK)
    assert [token["end_s"] for token in first["tokens"]] == [0.02, 0.08]
    assert [token["end_s"] for token in second["tokens"]] == [0.02, 0.1]
    assert second["tokens"][0] is first["tokens"][0] and third["tokens"][1] is second["tokens"][1]
    assert second["tokens"][1] is not first["tokens"][1]


def test_torch_and_numpy_give_the_same_confidence():
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    numpy_search, torch_search = GreedySearch(), GreedySearch()
    numpy_search.accept(rows)
    torch_search.accept(torch.from_numpy(rows))
    assert numpy_search.tokens == torch_search.tokens
    posteriors = torch.from_numpy(rows).softmax(-1).max(-1).values
    token = numpy_search.tokens[0]
    assert token.confidence == pytest.approx(posteriors[token.start_frame : token.end_frame].mean().item(), abs=1e-6)
    assert numpy_search.best.score == pytest.approx(posteriors.log().sum().item(), abs=1e-4)


def test_an_endpoint_of_no_silence_is_refused():
    with pytest.raises(UserError, match="endpoint_ms: 0 must be positive"):
        decoder(0)


def test_an_ended_stream_takes_no_samples():
    stream = decoder()
    stream.finish()
    with pytest.raises(RuntimeError, match="reset"):
        stream.receive(np.ones(0))
