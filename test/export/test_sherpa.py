"""The real sherpa-onnx on exported models."""

import functools

import numpy as np
import onnxruntime
import pytest
import sherpa_onnx
import torch
from tiny_exports import FRONT_ENDS, TOKENS, audio_16_bit, config, export, student

from distill.export.parity import for_sherpa, handed_over, sherpa_log_probs, sherpa_text
from distill.export.recognizer import open_session
from distill.export.sherpa import BLOCK, sherpa_tokens
from distill.streaming import StreamingRecognizer

# the last: the ring of history is written over more than twice
LENGTHS = (1, 500, 2399, 2400, 4800, 7000, 7681, 7760, 50001, 120001)
SETTINGS = [("cnn", 480, 1.0), ("fbank", 480, 0.5), ("cnn", 400, 0.3), ("fbank", 80, 1.0)]


@functools.cache
def session(front_end: str, chunk_ms: int, hop: float) -> onnxruntime.InferenceSession:
    return open_session(export(front_end, chunk_ms, hop) / f"sherpa_{chunk_ms}ms.onnx")


@functools.cache
def recognizer(front_end: str, chunk_ms: int, hop: float) -> sherpa_onnx.OnlineRecognizer:
    folder = export(front_end, chunk_ms, hop)
    return sherpa_onnx.OnlineRecognizer.from_t_one_ctc(
        tokens=str(folder / "tokens.txt"), model=str(folder / f"sherpa_{chunk_ms}ms.onnx"), num_threads=1
    )


def reference(front_end: str, chunk_ms: int, hop: float) -> StreamingRecognizer:
    return StreamingRecognizer(student(front_end), TOKENS, config(chunk_ms, hop), chunk_ms)


@pytest.mark.parametrize("setting", SETTINGS)
def test_texts_are_those_of_torch(setting):
    torch_session, texts = reference(*setting), set()
    for length in LENGTHS:
        samples = audio_16_bit(length, length)
        torch_session.reset()
        torch_session.accept_waveform(samples)
        texts.add(sherpa_text(recognizer(*setting), samples))
        assert torch_session.finish()["text"] in texts
    assert len(texts) > len(LENGTHS) // 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_log_posteriors_are_those_of_torch(setting):
    torch_session = reference(*setting)
    for length in LENGTHS:
        samples = audio_16_bit(length, length)
        stream = torch.from_numpy(samples)[None]
        expected = torch_session.network.stream(stream, torch_session._new_state(), final=True)[0].log_softmax(-1)
        actual = sherpa_log_probs(session(*setting), samples)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=0)


def test_every_16_bit_sample_arrives_as_it_is():
    steps = np.arange(-32767, 32768)
    given = for_sherpa((steps / 32768).astype(np.float32))
    assert (handed_over(given)[: len(steps)] == steps).all()


def run(model: onnxruntime.InferenceSession, samples: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-posteriors of (n,) int32 samples, a whole number of blocks, and the next state."""
    pieces = []
    for block in samples.reshape(-1, 1, BLOCK, 1):
        piece, state = model.run(None, {"signal": block.astype(np.int32), "state": state})
        pieces.append(piece[0])
    return np.concatenate(pieces), state


def test_the_end_resets_the_state_and_silence_is_not_the_end():
    model = session("cnn", 400, 0.3)
    zeros = np.zeros(model.get_inputs()[1].shape, np.float16)
    end = np.full(BLOCK, 32767)
    speech = (audio_16_bit(4 * BLOCK) * 32767).astype(np.int32)
    first, state = run(model, np.concatenate((speech, end)), zeros)
    nothing, state = run(model, np.concatenate((end, end)), state)
    second, _ = run(model, np.concatenate((speech, end)), state)
    assert len(nothing) == 0 and len(first)
    np.testing.assert_allclose(second, first, atol=1e-5)
    silent, _ = run(model, np.concatenate((speech, 0 * speech)), zeros)
    assert len(silent) > len(first)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_clipped_audio_is_audio(front_end):
    samples = audio_16_bit(20000)
    samples[2300:2500] = samples[9000:9600] = samples[-50:] = 32767 / 32768
    loud = np.where(samples == 32767 / 32768, np.float32(1.0), samples)
    loud[-50:] = samples[-50:]  # at the end of the audio full scale is the end
    model = session(front_end, 480, 1.0)
    expected, got = sherpa_log_probs(model, samples), sherpa_log_probs(model, loud)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_tokens_are_joined_as_they_should_be():
    assert sherpa_tokens(["<blank>", "five", "nine"], "word") == "<blank> 0\n▁five 1\n▁nine 2\n"
    assert sherpa_tokens(["<blank>", "<space>", "a"], "char") == "<blank> 0\n▁ 1\na 2\n"
    assert sherpa_tokens(["<blank>", "▁th", "e"], "bpe") == "<blank> 0\n▁th 1\ne 2\n"
