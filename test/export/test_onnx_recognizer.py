import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from tiny_exports import FRONT_ENDS, TOKENS, audio, config, export, student

from distill.decode.greedy import GreedySearch
from distill.decode.stream_results import NO_RULES, StreamDecoder
from distill.errors import UserError
from distill.export.recognizer import LogProbStream, OnnxModel, OnnxRecognizer
from distill.streaming import StreamingRecognizer

# samples: none, less than a window, a window (cnn, fbank), less than a chunk, a chunk to the sample, history not yet
# full, and full with a shorter last chunk
LENGTHS = (0, 1, 399, 400, 1360, 7000, 7760, 8400, 20000, 60001)


def torch_log_probs(front_end: str, samples: np.ndarray, chunk_ms: int, hop: float) -> np.ndarray:
    session = StreamingRecognizer(student(front_end), TOKENS, config(chunk_ms, hop), chunk_ms)
    state = session._new_state()
    return session.network.stream(torch.from_numpy(samples)[None], state, flush=True)[0].log_softmax(-1).numpy()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("chunk_ms", "hop"), [(480, 1.0), (480, 0.5), (400, 0.3), (80, 1.0)])
def test_log_posteriors_are_those_of_torch(front_end, chunk_ms, hop):
    model = OnnxModel(export(front_end, chunk_ms, hop) / f"student_{chunk_ms}ms.onnx")
    for length in LENGTHS[1:]:
        samples = audio(length, length)
        stream = LogProbStream(model)
        pieces = [stream.accept(piece) for piece in np.array_split(samples, 1 + length // 3000)]
        actual, expected = (
            np.concatenate((*pieces, stream.flush())),
            torch_log_probs(front_end, samples, chunk_ms, hop),
        )
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=0)


def test_after_ten_minutes_it_is_still_torch():
    model = OnnxModel(export("fbank") / "student_480ms.onnx")
    network = student("fbank")
    state = StreamingRecognizer(network, TOKENS, config(), 480)._new_state()
    stream, furthest = LogProbStream(model), 0.0
    minute = audio(16000 * 60)
    for _ in range(10):
        expected = network.stream(torch.from_numpy(minute)[None], state)[0].log_softmax(-1).numpy()
        furthest = max(furthest, np.abs(stream.accept(minute) - expected).max())
    assert furthest < 1e-3
    lengths = (stream._state.arrays["origin"] ** 2).sum(0)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.parametrize("endpoint_ms", [None, 20])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_results_are_those_of_the_recogniser_in_torch(front_end, endpoint_ms):
    reference = StreamingRecognizer(student(front_end), TOKENS, config(hop=0.5), 480, endpoint_ms)
    session = OnnxRecognizer.from_pretrained(export(front_end, hop=0.5), 480, endpoint_ms)
    assert (session.wait_ms, session.step_ms) == (reference.wait_ms, reference.step_ms)
    finals = 0
    for length in LENGTHS:
        samples = audio(length, length)
        samples[length // 3 : length // 2] = 0
        results = []
        for recognizer in (session, reference):
            recognizer.reset()
            actual = [r for at in range(0, length, 700) for r in recognizer.accept_waveform(samples[at : at + 700])]
            results.append([*actual, recognizer.finish()])
        assert len(results[0]) == len(results[1])
        for actual, expected in zip(*results, strict=True):
            assert all(actual[key] == expected[key] for key in ("event", "text", "audio_s"))
            assert actual["emitted_after_s"] >= 0
            for token, other in zip(actual["tokens"], expected["tokens"], strict=True):
                assert token["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
                assert {**token, "confidence": 0} == {**other, "confidence": 0}
        finals += sum(result["event"] == "final" for result in results[0])
    assert finals > len(LENGTHS) if endpoint_ms else finals == len(LENGTHS)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_endpoints_are_checked_after_each_chunk(front_end, monkeypatch):
    lengths = []
    monkeypatch.setattr(StreamDecoder, "accept", lambda _, scores: lengths.append(len(scores)) or [])
    reference = StreamingRecognizer(student(front_end), TOKENS, config(hop=0.5), 480, 20)
    session = OnnxRecognizer.from_pretrained(export(front_end, hop=0.5), 480, 20)
    for recognizer, frame_ms in ((session, session.model.frame_ms), (reference, reference.network.frame_ms)):
        recognizer.accept_waveform(audio(20000))
        assert lengths.pop() * frame_ms == recognizer.step_ms == 240


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_flush_brings_out_what_finish_does_and_the_stream_goes_on(front_end):
    """At cut points anywhere, in both recognisers; the times of what follows are those of the audio."""
    cuts, longer = np.random.default_rng(0).integers(1, 30000, 12).tolist(), 0
    reference = StreamingRecognizer(student(front_end), TOKENS, config(hop=0.5), 480)
    session = OnnxRecognizer.from_pretrained(export(front_end, hop=0.5), 480)
    for cut in cuts:
        samples, results = audio(cut + 16000, cut), []
        for recognizer in (session, reference):
            recognizer.reset()
            assert recognizer.flush() == []
            recognizer.accept_waveform(samples[:cut])
            (*_, flushed) = recognizer.flush()
            assert flushed["audio_s"] == cut / 16000
            recognizer.accept_waveform(samples[cut:])
            last = recognizer.finish()
            recognizer.reset()
            recognizer.accept_waveform(samples[:cut])
            assert recognizer.finish()["tokens"] == flushed["tokens"]
            assert last["text"].startswith(flushed["text"])
            longer += len(last["text"]) > len(flushed["text"])
            results.append(last)
        times = [token["start_s"] for token in results[0]["tokens"]]
        assert times == [token["start_s"] for token in results[1]["tokens"]] == sorted(times)
        assert results[0]["text"] == results[1]["text"] and times[-1] <= cut / 16000 + 1 + 1e-5
    assert longer > len(cuts)


def test_the_silence_of_flush_does_not_count():
    """Tokens in frames 2, 12 and 20 of 20 ms, where silence of 160 ms was put in behind 200 ms of audio."""
    decoder = StreamDecoder(TOKENS, "char", 20, NO_RULES, GreedySearch)
    frames = np.eye(len(TOKENS), dtype=np.float32)[[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0]]
    decoder.receive(np.ones(3200, np.float32))
    decoder.accept(9 * frames[:10])
    decoder.put_in(2560, 3200)
    decoder.accept(9 * frames[10:18])
    result = decoder.partial()
    assert [token["start_s"] for token in result["tokens"]] == [0.04, 0.2]
    decoder.receive(np.ones(1280, np.float32))
    decoder.accept(9 * frames[18:])
    result = decoder.partial()
    assert [token["start_s"] for token in result["tokens"]] == [0.04, 0.2, 0.24]


def test_int16_is_what_floats_are():
    session, texts = OnnxRecognizer.from_pretrained(export("cnn")), []
    samples = np.round(audio(30000) * 32768).clip(-32768, 32767).astype(np.int16)
    for given in (samples, samples / np.float32(32768)):
        session.reset()
        session.accept_waveform(given)
        texts.append(session.finish()["tokens"])
    assert texts[0] == texts[1] != []
    with pytest.raises(UserError, match="8000 Hz"):
        OnnxRecognizer.from_pretrained(export("cnn")).accept_waveform(samples, 8000)


def test_settled_tokens_are_not_made_again():
    session = OnnxRecognizer(OnnxModel(export("fbank") / "student_480ms.onnx"))
    results = session.accept_waveform(audio(40000, 3))
    for at in range(40000, 80000, 8000):
        results += session.accept_waveform(audio(80000, 3)[at : at + 8000])
    (before, after) = (result["tokens"] for result in results[-2:])
    assert len(before) > 2 and len(after) > 2
    assert all(old is new for old, new in zip(before[:-1], after, strict=False))


def test_sessions_share_a_model_and_not_their_state():
    model = OnnxModel(export("cnn") / "student_480ms.onnx")
    alone = OnnxRecognizer(model)
    alone.accept_waveform(audio(30000, 1))
    expected = alone.finish()["text"]
    first, second = OnnxRecognizer(model), OnnxRecognizer(model)
    for at in range(0, 30000, 5000):
        second.accept_waveform(audio(5000, at))
        first.accept_waveform(audio(30000, 1)[at : at + 5000])
    assert first.finish()["text"] == expected != second.finish()["text"]


def test_what_is_no_audio_is_refused():
    session = OnnxRecognizer.from_pretrained(export("cnn"))
    with pytest.raises(UserError, match="finite"):
        session.accept_waveform(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="floating-point"):
        session.accept_waveform(np.zeros(10, np.int32))
    session.finish()
    for call in (session.finish, lambda: session.accept_waveform(np.zeros(10))):
        with pytest.raises(RuntimeError, match="reset"):
            call()


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="was exported for 480 ms"):
        OnnxRecognizer.from_pretrained(export("cnn"), chunk_ms=320)
    with pytest.raises(UserError, match="int8 is not offered"):
        OnnxRecognizer.from_pretrained(export("cnn"), int8=True)
    with pytest.raises(UserError, match="distill export wrote"):
        OnnxRecognizer.from_pretrained(tmp_path)
    (tmp_path / "student_480ms.onnx").write_bytes(b"graph")
    with pytest.raises(UserError, match="not an exported model"):
        OnnxRecognizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="endpoint_ms: 0"):
        OnnxRecognizer.from_pretrained(export("cnn"), endpoint_ms=0)


def test_the_recogniser_needs_no_torch():
    program = "import sys; sys.modules['torch'] = None; import distill.export.recognizer"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk", "-1"), ("chunk", None), ("tail", str(10**12)), ("hop", "0"), ("samples", "12"), ("leading", "x"),
        ("chunk_ms", "160"), ("frame_ms", "40"), ("sample_rate", "8000"), ("sample_rate", None),
        ("token_type", "letters"), ("tokens", "5"),
        ("tokens", '["a"]'), ("tokens", '["\\u001b", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]'),
    ],
)  # fmt: skip
def test_metadata_that_are_not_the_networks_are_refused(tmp_path, key, value):
    model = onnx.load(export("cnn") / "student_480ms.onnx")
    values = {entry.key: entry.value for entry in model.metadata_props} | {key: value}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {name: text for name, text in values.items() if text is not None})
    onnx.save(model, tmp_path / "student_480ms.onnx")
    with pytest.raises(UserError, match="student_480ms.onnx: (not an exported model|is a model for)"):
        OnnxRecognizer.from_pretrained(tmp_path, 480)


def test_another_model_in_its_place_is_refused(tmp_path):
    shutil.copy(export("cnn", 160) / "student_160ms.onnx", tmp_path / "student_480ms.onnx")
    with pytest.raises(UserError, match="is a model for chunks of 160 ms"):
        OnnxRecognizer.from_pretrained(tmp_path, 480)
    shutil.copy(export("cnn") / "sherpa_480ms.onnx", tmp_path / "student_480ms.onnx")
    with pytest.raises(UserError, match="not an exported model"):
        OnnxRecognizer.from_pretrained(tmp_path, 480)
    other = onnx.load(export("cnn", 160) / "student_160ms.onnx")  # with the metadata that belong in this place
    del other.metadata_props[:]
    other.metadata_props.extend(onnx.load(export("cnn") / "student_480ms.onnx").metadata_props)
    onnx.save(other, tmp_path / "student_480ms.onnx")
    with pytest.raises(UserError, match="its inputs are not those of a step"):
        OnnxRecognizer.from_pretrained(tmp_path, 480)
