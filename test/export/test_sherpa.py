"""The real sherpa-onnx on exported models."""

import functools
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import sherpa_onnx
from tiny_exports import TOKENS, audio_16_bit, config, export, student

from distill.decode.greedy import GreedySearch, greedy
from distill.decode.hypothesis import RecordingSearch
from distill.export import parity
from distill.export.model import shapes_for
from distill.export.recognizer import open_session
from distill.export.sherpa import sherpa_tokens
from distill.streaming import StreamingRecognizer

# the last: the ring of history is written over more than twice
LENGTHS = (1, 500, 2399, 2400, 4800, 7000, 7681, 7760, 50001, 120001)
RAW_AUDIO, LOG_MEL = [("cnn", 480, 1.0), ("cnn", 400, 0.3)], [("fbank", 480, 0.5), ("fbank", 80, 1.0)]
SETTINGS = RAW_AUDIO + LOG_MEL


@functools.cache
def session(front_end: str, chunk_ms: int, hop: float) -> onnxruntime.InferenceSession:
    return open_session(export(front_end, chunk_ms, hop) / f"sherpa_{chunk_ms}ms.onnx")


@functools.cache
def recognizer(front_end: str, chunk_ms: int, hop: float) -> tuple[sherpa_onnx.OnlineRecognizer, int]:
    folder = export(front_end, chunk_ms, hop)
    return parity.sherpa_recognizer(folder / f"sherpa_{chunk_ms}ms.onnx", folder / "tokens.txt", front_end == "fbank")


def torch_results(setting: tuple[str, int, float], samples: np.ndarray, chunks: int = 0) -> list[dict]:
    """Results of the recogniser in torch; without its end, but with silence that completes so many chunks more."""
    front_end, chunk_ms, hop = setting
    recogniser = StreamingRecognizer(student(front_end), TOKENS, config(chunk_ms, hop), chunk_ms)
    results = recogniser.accept_waveform(samples)
    if chunks:
        return results + recogniser.accept_waveform(np.zeros(chunks * recogniser.step_ms * 16, np.float32))
    return [*results, recogniser.finish()]


def sherpa_input(setting: tuple[str, int, float], samples: np.ndarray) -> np.ndarray:
    return np.concatenate((parity.for_sherpa(samples, setting[0] == "fbank"), parity.silence(setting[1])))


def spell(result) -> str:
    return "".join(result.tokens).strip()


@pytest.mark.parametrize("setting", SETTINGS)
def test_texts_are_those_of_torch(setting):
    """sherpa-onnx decodes a chunk or two of silence more than torch needs, so its text begins with torch's."""
    texts = set()
    for length in LENGTHS:
        samples = audio_16_bit(length, length)
        recogniser, rate = recognizer(*setting)
        expected = torch_results(setting, samples)[-1]["text"]
        text = parity.sherpa_text(recogniser, sherpa_input(setting, samples), rate)
        assert text.startswith(expected)
        texts.add(expected)
    assert len(texts) > len(LENGTHS) // 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_log_posteriors_are_those_of_torch(setting):
    front_end, chunk_ms, hop = setting
    network, model = student(front_end), session(*setting)
    shapes = shapes_for(network, config(chunk_ms, hop), chunk_ms, "tiny")
    for length in LENGTHS:
        samples = audio_16_bit(length, length)
        given, scores = sherpa_input(setting, samples), []
        torch_session = StreamingRecognizer(
            network, TOKENS, config(chunk_ms, hop), chunk_ms,
            new_search=lambda scores=scores: RecordingSearch(GreedySearch(), scores.append),
        )  # fmt: skip
        torch_session.accept_waveform(samples)
        torch_session.finish()
        expected = np.concatenate([piece.log_softmax(-1).numpy() for piece in scores])
        if front_end == "fbank":
            expected = parity.a_row_per_frame(expected, shapes)
            actual = parity.log_mel_log_probs(model, network.front_end, given)
        else:
            actual = parity.raw_audio_log_probs(model, given)
        assert len(actual) >= len(expected) > 0
        np.testing.assert_allclose(actual[: len(expected)], expected, atol=1e-3, rtol=0)


def test_every_16_bit_sample_arrives_at_a_raw_audio_student_as_it_is():
    steps = np.arange(-32767, 32768)
    given = parity.for_sherpa((steps / 32768).astype(np.float32), False)
    assert (parity.handed_over(given) == steps).all()


@pytest.mark.parametrize("setting", LOG_MEL)
def test_many_streams_are_one_batch(setting):
    """Ten that begin at different times; the text and times of each are those that it has alone."""
    recogniser, rate = recognizer(*setting)
    recordings = [sherpa_input(setting, audio_16_bit(20000 + 4000 * n, n)) for n in range(10)]
    alone = []
    for samples in recordings:
        stream = recogniser.create_stream()
        stream.accept_waveform(rate, samples)
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
        alone.append(recogniser.get_result_all(stream))
    for delay in (0, 1):
        streams, sizes = [recogniser.create_stream() for _ in recordings], set()
        for at in range(-10, 80):
            for number, (stream, samples) in enumerate(zip(streams, recordings, strict=True)):
                begin = 1600 * (at + number * delay)
                if begin >= 0:
                    stream.accept_waveform(rate, samples[begin : begin + 1600])
            while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
                sizes.add(len(ready))
                recogniser.decode_streams(ready)
        assert max(sizes) == 10 if delay == 0 else len(sizes) > 3
        for stream, expected in zip(streams, alone, strict=True):
            assert spell(recogniser.get_result_all(stream)) == spell(expected) != ""


@pytest.mark.parametrize("setting", LOG_MEL)
def test_times_are_those_of_the_rows(setting):
    """40 ms each; test_rows.py compares these with the times of all logit frames."""
    recogniser, rate = recognizer(*setting)
    samples = sherpa_input(setting, audio_16_bit(60000, 2))
    stream = recogniser.create_stream()
    stream.accept_waveform(rate, samples)
    while recogniser.is_ready(stream):
        recogniser.decode_stream(stream)
    tokens = greedy(parity.log_mel_log_probs(session(*setting), student("fbank").front_end, samples))
    assert len(tokens) > 30
    times = [token.start_frame * 0.04 for token in tokens]
    np.testing.assert_allclose(recogniser.get_result_all(stream).timestamps, times, atol=1e-3)


def test_endpoints_lose_no_audio():
    """sherpa-onnx's rules on a log-mel student: the stream is reset in silence, and the next words are there."""
    setting = LOG_MEL[0]
    folder = export(*setting)
    recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(folder / "tokens.txt"), model=str(folder / "sherpa_480ms.onnx"), num_threads=1,
        enable_endpoint_detection=True, rule1_min_trailing_silence=100, rule2_min_trailing_silence=100,
        rule3_min_utterance_length=2.0,
    )  # fmt: skip
    samples, texts, starts = audio_16_bit(160000, 3), [], []
    stream = recogniser.create_stream()
    for at in range(0, len(samples), 1600):
        stream.accept_waveform(16000, samples[at : at + 1600])
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
        if recogniser.is_endpoint(stream):
            result = recogniser.get_result_all(stream)
            texts.append(spell(result))
            starts.append(result.start_time)
            recogniser.reset(stream)
    assert len(texts) >= 4 and all(texts)
    assert np.allclose(np.diff(starts), starts[1]) and 2.0 <= starts[1] < 2.5
    # an utterance is what the model makes of the audio from there on
    front = student("fbank").front_end
    begin = round(16000 * starts[2]) - front.lead
    without_lead = SimpleNamespace(lead=0, features=front.features)
    log_probs = parity.log_mel_log_probs(session(*setting), without_lead, samples[begin : begin + 48000])
    assert "".join(TOKENS[token.id] for token in greedy(log_probs)).startswith(texts[2])


def test_tokens_are_joined_as_they_should_be():
    assert sherpa_tokens(["<blank>", "five", "nine"], "word") == "<blank> 0\n▁five 1\n▁nine 2\n"
    assert sherpa_tokens(["<blank>", "<space>", "a"], "char") == "<blank> 0\n▁ 1\na 2\n"
    assert sherpa_tokens(["<blank>", "▁th", "e"], "bpe") == "<blank> 0\n▁th 1\ne 2\n"
