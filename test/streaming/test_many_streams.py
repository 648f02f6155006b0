"""Many streams of one recogniser, in torch and in onnxruntime; and the interface before there were streams."""

import gc

import numpy as np
import pytest
import torch
from tiny_exports import TOKENS, audio, config, export, student

from distill import streaming
from distill.decode.stream_results import EndpointRules
from distill.errors import UserError
from distill.export.recognizer import OnnxModel, OnnxRecognizer, Recognizer
from distill.export.slots import SlotModel

RUNTIMES = ("torch", "onnxruntime", "onnxruntime, batches")


def recognizer(runtime: str, front_end: str = "fbank", rules: EndpointRules = EndpointRules()):  # noqa: B008
    """Of chunks of 480 ms that overlap by half."""
    if runtime == "torch":
        return streaming.Recognizer(student(front_end), TOKENS, config(hop=0.5), 480, rules)
    folder = export(front_end, hop=0.5)
    if "batches" in runtime:
        return Recognizer(SlotModel(folder / "streams_480ms.onnx"), rules)
    return Recognizer(OnnxModel(folder / "student_480ms.onnx"), rules)


def alike(actual: dict, expected: dict) -> bool:
    """Whether two results are the same up to rounding."""
    assert len(actual["tokens"]) == len(expected["tokens"])
    for one, other in zip(actual["tokens"], expected["tokens"], strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        assert {**one, "confidence": 0} == {**other, "confidence": 0}
    different = {"emitted_after_s": 0, "tokens": []}
    return {**actual, **different} == {**expected, **different}


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_streams_together_give_what_each_gives_alone(runtime, front_end):
    """Seven that begin, pause and end at different times."""
    model = recognizer(runtime, front_end, EndpointRules(silence=20, length=500))
    recordings, alone = [audio(20000 + 3000 * n, n) for n in range(7)], []
    for number, samples in enumerate(recordings):
        stream, results = model.create_stream(), []
        for start in range(0, len(samples), 1700):
            stream.accept(samples[start : start + 1700])
            if start == 1700 * number:
                stream.flush()
            results += stream.decode()
        stream.finish()
        alone.append(results + stream.decode())
    streams, together = [model.create_stream() for _ in recordings], [[] for _ in recordings]
    for step in range(40):
        for number, (stream, samples) in enumerate(zip(streams, recordings, strict=True)):
            start = 1700 * (step - number)
            if 0 <= start < len(samples):
                stream.accept(samples[start : start + 1700])
                if start == 1700 * number:
                    stream.flush()
            elif start >= len(samples) and not stream.closed:
                stream.finish()
        for found, new in zip(together, model.decode(streams), strict=True):
            found += new
    for results, expected in zip(together, alone, strict=True):
        assert len(results) == len(expected) > 5
        assert all(map(alike, results, expected))
    assert sum(result["event"] == "final" for results in alone for result in results) > len(alone)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_stream_accepts_takes_effect_in_order_whenever_it_is_decoded(runtime):
    model, samples = recognizer(runtime), audio(40000, 3)
    often, once = model.create_stream(), model.create_stream()
    for part in (samples[:9001], None, samples[9001:9002], samples[9002:30000], None, samples[30000:]):
        for stream in (often, once):
            if part is None:
                stream.flush()
            else:
                stream.accept(part)
        often.decode()
    for stream in (often, once):
        stream.finish()
    (expected,), (final,) = often.decode(), once.decode()
    assert alike(final, expected) and len(final["tokens"]) > 5
    assert final == once.result and once.decode() == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_stream_has_its_rules(runtime):
    model, samples = recognizer(runtime), audio(60000, 3)
    streams = [model.create_stream(), model.create_stream(EndpointRules(length=1000))]
    for stream in streams:
        stream.accept(samples)
        stream.finish()
    whole, parts = model.decode(streams)
    assert [result["endpoint"] for result in whole] == ["end"]
    assert [result["endpoint"] for result in parts] == ["length"] * (len(parts) - 1) + ["end"] and len(parts) > 2
    assert "".join(result["text"] for result in parts) == whole[0]["text"]
    starts = [result["start_s"] for result in parts]
    assert starts[0] == 0 and all(
        1 <= later - earlier < 1.5 for earlier, later in zip(starts, starts[1:], strict=False)
    )


def test_partial_results_keep_what_was_stable():
    model = recognizer("torch")
    model.token_type = "word"
    stream, samples, shown = model.create_stream(), audio(80000, 1), []
    for start in range(0, len(samples), 1600):
        stream.accept(samples[start : start + 1600])
        shown += stream.decode()
    assert len({result["stable"] for result in shown}) > 5
    for earlier, later in zip(shown, shown[1:], strict=False):
        assert earlier["text"].startswith(earlier["stable"]) and later["text"].startswith(earlier["stable"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_misuse_is_refused(runtime):
    model, other = recognizer(runtime), recognizer(runtime, "cnn")
    stream = model.create_stream()
    with pytest.raises(ValueError, match="another recogniser"):
        model.decode([stream, other.create_stream()])
    with pytest.raises(UserError, match="8000 Hz"):
        stream.accept(np.zeros(80, np.float32), 8000)
    with pytest.raises(UserError, match="not finite"):
        stream.accept(np.array([0.0, np.nan], np.float32))
    stream.finish()
    for call in (stream.finish, stream.flush, lambda: stream.accept(np.zeros(5))):
        with pytest.raises(RuntimeError, match="create another"):
            call()
    assert [result["audio_s"] for result in stream.decode()] == [0]


@pytest.mark.parametrize(("front_end", "chunk_ms", "hop"), [("cnn", 480, 0.5), ("fbank", 400, 0.3), ("fbank", 80, 1.0)])
def test_a_batch_in_onnxruntime_computes_what_torch_does(front_end, chunk_ms, hop):
    """Log-posteriors of streams that begin one after another, and of long ones: the rings are written over."""
    model, network = SlotModel(export(front_end, chunk_ms, hop) / f"streams_{chunk_ms}ms.onnx"), student(front_end)
    recordings = [audio(50000 + 20000 * n, n) for n in range(4)]
    reference = streaming.Recognizer(network, TOKENS, config(chunk_ms, hop), chunk_ms)
    states, scores = [model.new_stream() for _ in recordings], [[] for _ in recordings]
    for step in range(120):
        for number, (state, samples) in enumerate(zip(states, recordings, strict=True)):
            state.receive(samples[1000 * (step - 3 * number) :][:1000] if step >= 3 * number else samples[:0])
        ready = [number for number, state in enumerate(states) if state.ready]
        for number, rows in zip(
            ready, model.compute([states[number] for number in ready]) if ready else (), strict=True
        ):
            scores[number].append(rows)
    for samples, rows in zip(recordings, scores, strict=True):
        state = reference._new_state()
        expected = network.stream(torch.from_numpy(samples)[None], state)[0].log_softmax(-1).numpy()
        actual = np.concatenate(rows)
        assert len(actual) > 100 and abs(len(actual) - len(expected)) <= 2 * len(rows[-1])
        count = min(len(actual), len(expected))
        np.testing.assert_allclose(actual[:count], expected[:count], atol=1e-3, rtol=0)


def test_a_slot_is_taken_again_and_what_was_in_it_is_not_seen():
    model = SlotModel(export("fbank") / "streams_480ms.onnx")
    recogniser, samples = Recognizer(model), audio(60000, 1)
    first = recogniser.recognize(samples)
    streams = [recogniser.create_stream() for _ in range(5)]
    assert len({stream.state.slot for stream in streams}) == 5
    for number, stream in enumerate(streams):
        stream.accept(audio(40000, number))
    recogniser.decode(streams)
    used = {stream.state.slot for stream in streams}
    del stream, streams
    gc.collect()
    again = recogniser.create_stream()
    assert again.state.slot in used | set(range(8))
    again.accept(samples)
    again.finish()
    assert alike(again.decode()[-1], {**first})


def test_recognisers_that_share_a_network_share_batches(monkeypatch):
    first, sizes = recognizer("torch"), []
    second = streaming.Recognizer(first.network, TOKENS, config(hop=0.5), 480)
    stream_together = first.network.stream_together
    monkeypatch.setattr(
        first.network, "stream_together", lambda states: sizes.append(len(states)) or stream_together(states)
    )
    streams = [first.create_stream(), second.create_stream(), first.create_stream()]
    for stream in streams:
        stream.accept(audio(12000))
    first.decode(streams)
    assert set(sizes) == {3}


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_old_names_warn_and_work(runtime):
    samples = audio(30000, 2)
    expected = recognizer(runtime).recognize(samples)
    with pytest.warns(DeprecationWarning, match="Recognizer and its streams"):
        if runtime == "torch":
            session = streaming.StreamingRecognizer(student("fbank"), TOKENS, config(hop=0.5), 480)
        else:
            session = OnnxRecognizer.from_pretrained(export("fbank", hop=0.5), 480)
    session.accept_waveform(samples)
    assert alike(session.finish(), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_behind_a_flush_times_are_those_of_the_audio(runtime, monkeypatch):
    """Tokens as of a stream whose audio has the silence of the flush; times less that silence."""
    model, samples, spoken = recognizer(runtime), audio(60000, 3), 20000
    flush, silences = model._flush, []

    def noted(state):
        silences.append(flush(state))
        return silences[-1]

    monkeypatch.setattr(model, "_flush", noted)
    stream, other = model.create_stream(), model.create_stream()
    stream.accept(samples[:spoken])
    stream.flush()
    stream.accept(samples[spoken:])
    stream.finish()
    result = stream.decode()[-1]
    silence, begin = silences[0] / 16000, spoken / 16000
    other.accept(np.concatenate([samples[:spoken], np.zeros(silences[0], np.float32), samples[spoken:]]))
    other.finish()
    expected = other.decode()[-1]
    assert silence > 0.1 and [t["token"] for t in result["tokens"]] == [t["token"] for t in expected["tokens"]]
    later = 0
    for token, there in zip(result["tokens"], expected["tokens"], strict=True):
        if there["start_s"] <= begin:
            assert token["start_s"] == there["start_s"]
        elif there["start_s"] > begin + silence:
            later += 1
            assert token["start_s"] == pytest.approx(there["start_s"] - silence, abs=0.006)
        else:
            assert token["start_s"] == pytest.approx(begin, abs=0.006)
    assert later > 3
