"""Results of a stream: endpoints, times and texts, on scores of torch and of numpy."""

import numpy as np
import pytest
import torch

from distill.audio import SILENT
from distill.decode.greedy import GreedySearch
from distill.decode.stream_results import SHERPA_RULES, EndpointRules, StreamDecoder, silence_rule
from distill.errors import UserError

TOKENS = ["<blank>", "a", "b", "<space>"]
FRAME_MS, CHUNK = 20, 4


def scores(path: str, kind: str = "numpy"):
    """(t, V) logits whose most probable token is each letter of a path; - is blank."""
    logits = 8 * np.eye(len(TOKENS), dtype=np.float32)[["-ab ".index(letter) for letter in path]]
    return torch.from_numpy(logits) if kind == "torch" else logits


def decoder(endpoint_ms: int | None = None) -> StreamDecoder:
    return StreamDecoder(TOKENS, "char", FRAME_MS, silence_rule(endpoint_ms), GreedySearch)


def accept(stream: StreamDecoder, rows) -> list:
    """Results after rows of whole chunks, as a recogniser gives them."""
    finals = [final for start in range(0, len(rows), CHUNK) for final in stream.accept(rows[start : start + CHUNK])]
    return finals if finals and stream.empty else [*finals, stream.partial()]


def events(results: list) -> list[tuple[str, str]]:
    return [(result["event"], result["text"]) for result in results]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_utterance_ends_at_the_end_of_the_chunk_in_which_the_silence_is_long_enough(kind):
    stream = decoder(endpoint_ms=60)
    stream.receive(np.ones(16000))
    # After "a" there are 2 and then 3 blank frames at the ends of chunks; 60 ms are 3 of them.
    assert events(accept(stream, scores("-a--", kind))) == [("partial", "a")]
    assert events(accept(stream, scores("----", kind))) == [("final", "a")]
    assert events(accept(stream, scores("a---", kind))) == [("final", "a")]
    assert events(accept(stream, scores("----", kind))) == [("partial", "")]
    assert events([stream.finish()]) == [("final", "")]


@pytest.mark.parametrize("level", [0.0, SILENT])
def test_nothing_is_recognised_before_the_first_sound(level):
    """30 s of silence, with which a network guesses words, and then a sound."""
    frames, chunk_samples = 30 * 1000 // FRAME_MS, CHUNK * FRAME_MS * 16
    stream = decoder(endpoint_ms=60)
    shown = []
    for _ in range(frames // CHUNK):
        stream.receive(np.full(chunk_samples, level))
        shown += accept(stream, scores("a-b-"))
    assert {(result["event"], result["text"]) for result in shown} == {("partial", "")}
    for _ in range(2):  # the guess ends in the silence after it
        stream.receive(np.full(chunk_samples, level))
        assert not any(result["text"] for result in accept(stream, scores("----")))
    stream.receive(np.full(chunk_samples, 2 * SILENT))
    assert events(accept(stream, scores("-ab-"))) == [("partial", "ab")]
    assert events([stream.finish()]) == [("final", "ab")] and stream.hypotheses[0].tokens
    stream = decoder()
    stream.receive(np.full(480000, level))
    stream.accept(scores("ab" * (frames // 2)))
    assert events([stream.finish()]) == [("final", "")] and not stream.hypotheses[0].tokens


def test_silence_within_a_chunk_ends_nothing():
    stream = decoder(endpoint_ms=20)
    stream.receive(np.ones(16000))
    assert events(accept(stream, scores("a--b"))) == [("partial", "ab")]


def test_endpoints_do_not_depend_on_how_many_chunks_come_at_once():
    path = "-aa-----b---ab--------a-"
    at_once, one_by_one = decoder(60), decoder(60)
    for stream in (at_once, one_by_one):
        stream.receive(np.ones(160000))
    finals = [result for result in accept(at_once, scores(path)) if result["event"] == "final"]
    others = []
    for start in range(0, len(path), CHUNK):
        others += accept(one_by_one, scores(path[start : start + CHUNK]))
    others = [result for result in others if result["event"] == "final"]
    assert len(finals) == len(others) >= 3
    assert {result["endpoint"] for result in finals} == {"silence"}
    for result, other in zip(finals, others, strict=True):
        assert {**result, "emitted_after_s": 0} == {**other, "emitted_after_s": 0}


def test_times_are_those_of_the_stream_and_end_with_the_audio():
    stream = decoder(endpoint_ms=40)
    stream.receive(np.ones(int(0.17 * 16000)))
    accept(stream, scores("-a--"))
    stream.accept_last(scores("-bbbbb"))
    final = stream.finish()
    assert [(token["start_s"], token["end_s"]) for token in final["tokens"]] == [(0.1, 0.17)]
    assert final["audio_s"] == 0.17


def test_a_token_that_may_continue_is_made_again_and_no_other():
    stream = decoder()
    stream.receive(np.ones(16000))
    (first,) = accept(stream, scores("a-bb"))
    (second,) = accept(stream, scores("b---"))
    (third,) = accept(stream, scores("---a"))
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


def ends(stream: StreamDecoder, path: str) -> list[tuple[str, str, float, float]]:
    """Rule, text, beginning and end in seconds of each utterance of a path whose audio comes chunk by chunk."""
    found = []
    for start in range(0, len(path), CHUNK):
        stream.receive(np.ones(CHUNK * FRAME_MS * 16, np.float32))
        for result in stream.accept(scores(path[start : start + CHUNK])):
            found.append((result["endpoint"], result["text"], result["start_s"], result["audio_s"]))
    return found


def test_each_rule_ends_an_utterance_and_says_so():
    """Chunks of 80 ms: 160 ms without a token, 80 ms behind one, utterances of 240 ms."""
    rules = EndpointRules(silence=80, empty=160, length=240)
    stream = StreamDecoder(TOKENS, "char", FRAME_MS, rules, GreedySearch)
    assert ends(stream, "--------" "-a------" "-a-b-a-ba-b-") == [
        ("empty", "", 0.0, 0.16), ("silence", "a", 0.16, 0.32), ("length", "ababab", 0.32, 0.56),
    ]  # fmt: skip
    assert stream.finish()["start_s"] == 0.56


def test_a_rule_that_is_not_there_ends_nothing():
    stream = StreamDecoder(TOKENS, "char", FRAME_MS, EndpointRules(length=240), GreedySearch)
    assert ends(stream, "-a----------") == [("length", "a", 0.0, 0.24)]
    stream = StreamDecoder(TOKENS, "char", FRAME_MS, EndpointRules(empty=160), GreedySearch)
    assert ends(stream, "-a" + 30 * "-") == []


def test_the_longest_utterance_does_not_end_within_a_token():
    """It would be recognised twice."""
    stream = StreamDecoder(TOKENS, "char", FRAME_MS, EndpointRules(length=80), GreedySearch)
    assert ends(stream, "--aaa-------") == [("length", "a", 0.0, 0.16), ("length", "", 0.16, 0.24)]


def test_a_token_that_does_not_end_is_recognised_once():
    stream = StreamDecoder(TOKENS, "char", FRAME_MS, EndpointRules(length=160), GreedySearch)
    assert ends(stream, 8 * "aaaa" + "a-a-") == [
        ("length", "a", 0.0, 0.32), ("length", "", 0.32, 0.48), ("length", "", 0.48, 0.64),
    ]  # fmt: skip
    assert stream.finish()["text"] == "a"


def test_the_rules_of_sherpa_onnx_are_there_and_no_rule_may_be_zero():
    assert (SHERPA_RULES.empty, SHERPA_RULES.silence, SHERPA_RULES.length) == (2400, 1200, 20000)
    with pytest.raises(UserError, match="length: 0 ms must be positive"):
        EndpointRules(length=0)


def test_words_are_stable_when_no_more_audio_changes_them():
    stream = StreamDecoder(["<blank>", "a", "b", "<space>"], "char", FRAME_MS, EndpointRules(), GreedySearch)
    stream.receive(np.ones(160000, np.float32))
    shown = [accept(stream, scores(path))[-1] for path in ("-a-b", "b-- ", "-a--", "----")]
    assert [(result["text"], result["stable"]) for result in shown] == [
        ("ab", ""), ("ab", ""), ("ab a", "ab"), ("ab a", "ab"),
    ]  # fmt: skip
    assert stream.finish()["stable"] == "ab a"
    words = StreamDecoder(TOKENS, "word", FRAME_MS, EndpointRules(), GreedySearch)
    words.receive(np.ones(160000, np.float32))
    assert [accept(words, scores(path))[-1]["stable"] for path in ("-a-b", "----")] == ["a", "a b"]
    pieces = StreamDecoder(["<blank>", "\u2581a", "b", "\u2581c"], "bpe", FRAME_MS, EndpointRules(), GreedySearch)
    pieces.receive(np.ones(160000, np.float32))
    assert [accept(pieces, scores(path))[-1]["stable"] for path in ("-a-b", "-- -")] == ["", "ab"]
