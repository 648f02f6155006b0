"""Sessions and the command: events, times, and every kind of network behind one interface."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TEACHER, VOCAB, masked, speech, student, teacher

from distill.bin.transcribe import main
from distill.decode.stream_results import Result
from distill.errors import UserError
from distill.streaming import StreamingRecognizer, accept_together

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
STREAMING = {"token_type": "char", "chunk_conf": {"chunk_ms": 480, "left_ms": 2000}}
AHEAD = {"token_type": "char", "chunk_conf": {"chunk_ms": 480, "left_ms": 2000, "hop": 0.5}}
NETWORKS = {
    "student_stream": (student, STREAMING),
    "student_stream_fbank": (lambda: student("fbank"), STREAMING),
    "student_stream_ahead": (student, AHEAD),
    "student_full": (student, {"token_type": "char", "chunk_conf": None}),
    "teacher": (teacher, {"token_type": "char"}),
}
assert len(TOKENS) == VOCAB


def recognizer(kind: str, chunk_ms: int | None = 480) -> StreamingRecognizer:
    make, config = NETWORKS[kind]
    return StreamingRecognizer(make(), TOKENS, config, chunk_ms)


def check(result: dict, event: str, audio_s: float) -> None:
    assert result["event"] == event
    assert result["audio_s"] == pytest.approx(audio_s)
    assert result["emitted_after_s"] > 0
    ends = [0.0]
    for token in result["tokens"]:
        assert ends[-1] <= token["start_s"] <= token["end_s"] <= audio_s + 1e-6
        assert token["token"] in TOKENS and 0 < token["confidence"] <= 1
        ends.append(token["end_s"])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_session(kind):
    session = recognizer(kind)
    audio = speech(40000).numpy()
    finals = []
    for sizes in ([160] * 250, [40000], [39999, 1]):
        position, partials = 0, []
        for size in sizes:
            results = session.accept_waveform(audio[position : position + size])
            position += size
            for result in results:
                check(result, "partial", position / 16000)
                partials.append(result)
        finals.append(session.finish())
        check(finals[-1], "final", 2.5)
        # five chunks of 480 ms, or nine that begin every 240 ms
        assert len(partials) == ((9 if kind == "student_stream_ahead" else 5) if len(sizes) == 250 else 1)
        session.reset()
    assert finals[0]["tokens"], "a test of times needs tokens"
    for final in finals[1:]:
        assert final["text"] == finals[0]["text"]
        assert [t["start_s"] for t in final["tokens"]] == [t["start_s"] for t in finals[0]["tokens"]]


@torch.no_grad()
def test_a_streaming_student_decodes_its_masked_forward():
    session = recognizer("student_stream", 320)
    network, audio = session.network, speech(50000)
    session.accept_waveform(audio)
    streamed = session.finish()
    ids = masked(network, audio, 16, 100).argmax(-1)
    expected = [TOKENS[i] for i in torch.unique_consecutive(ids).tolist() if i != 0]
    assert [t["token"] for t in streamed["tokens"]] == expected
    full = recognizer("student_stream", None)
    full.accept_waveform(audio)
    ids = network(audio[None], torch.tensor([50000])).logits[0].argmax(-1)
    assert [t["token"] for t in full.finish()["tokens"]] == [
        TOKENS[i] for i in torch.unique_consecutive(ids).tolist() if i != 0
    ]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("samples", [0, 1, 2, 399, 400, 719, 720, 1359, 7679, 7680, 7760, 8400])
def test_any_length(kind, samples):
    session = recognizer(kind)
    session.accept_waveform(speech(samples).numpy())
    check(session.finish(), "final", samples / 16000)


@pytest.mark.parametrize("kind", NETWORKS)
def test_silence_gives_finite_results(kind):
    session = recognizer(kind)
    session.accept_waveform(np.zeros(16000, np.float32))
    assert all(np.isfinite(token["confidence"]) for token in session.finish()["tokens"])


def test_misuse_is_refused():
    for kind, chunk_ms in (("student_stream", 490), ("student_stream_fbank", 500), ("teacher", 0)):
        with pytest.raises(UserError, match="chunk_ms"):
            recognizer(kind, chunk_ms)
    session = recognizer("student_stream")
    with pytest.raises(UserError, match="not finite"):
        session.accept_waveform(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="floating"):
        session.accept_waveform(np.zeros(5, np.int32))
    with pytest.raises(ValueError, match="samples"):
        session.accept_waveform(np.zeros((2, 5), np.float32))
    session.finish()
    with pytest.raises(RuntimeError, match="reset"):
        session.finish()
    with pytest.raises(RuntimeError, match="reset"):
        session.accept_waveform(np.zeros(5, np.float32))


class Script(torch.nn.Module):
    """Logits of a network replaced by a script: the token that each 20 ms frame of the stream shows."""

    def __init__(self, network, frames: list[int]) -> None:
        super().__init__()
        self.network, self.frames = network, torch.tensor(frames)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.network, name)

    def stream_together(self, states):
        (state,) = states
        before = state.frames
        (logits,) = self.network.stream_together(states)
        return [torch.nn.functional.one_hot(self.frames[before : before + logits.shape[1]], VOCAB)[None].float() * 20]


# "a b" and "c", 26 blank frames (520 ms) after b, 6 in between a and b
SCRIPT = [0] * 5 + [2, 2] + [0] * 6 + [3] + [0] * 26 + [4] + [0] * 80


@pytest.mark.parametrize("sizes", [[160] * 202, [32320], [7000, 25320]])
@pytest.mark.parametrize("endpoint_ms,texts", [(None, ["abc"]), (320, ["ab", "c", ""]), (600, ["abc", ""])])
def test_trailing_silence_ends_a_result(sizes, endpoint_ms, texts):
    network = Script(student(), SCRIPT)
    session = StreamingRecognizer(network, TOKENS, STREAMING, 160, endpoint_ms)
    audio, position, finals = speech(32320).numpy(), 0, []
    for size in sizes:
        finals += [r for r in session.accept_waveform(audio[position : position + size]) if r["event"] == "final"]
        position += size
    finals.append(session.finish())
    assert [final["text"].replace("<unk>", "") for final in finals] == texts
    starts = [token["start_s"] for final in finals for token in final["tokens"]]
    assert starts == pytest.approx([0.1, 0.26, 0.8])


def test_an_endpoint_needs_a_stream():
    with pytest.raises(UserError, match="endpoint_ms"):
        StreamingRecognizer(teacher(), TOKENS, {}, 480, 500)


def test_sessions_together_give_what_each_gives_alone():
    network = student()
    audio = [speech(20000 + 3000 * n, n).numpy() for n in range(5)]
    alone, together = [], [StreamingRecognizer(network, TOKENS, STREAMING, 320) for _ in audio]
    for samples in audio:
        session = StreamingRecognizer(network, TOKENS, STREAMING, 320)
        session.accept_waveform(samples)
        alone.append(session.finish())
    events = 0
    for step in range(25):
        running = [n for n in range(5) if step >= n]  # one joins at every step
        pieces = [audio[n][1700 * (step - n) : 1700 * (step - n + 1)] for n in running]
        results = accept_together([together[n] for n in running], pieces)
        events += sum(map(len, results))
    assert events > 10
    for session, expected in zip(together, alone, strict=True):
        final = session.finish()
        assert final["text"] == expected["text"]
        for actual, reference in zip(final["tokens"], expected["tokens"], strict=True):
            assert actual == {**reference, "confidence": pytest.approx(reference["confidence"], abs=1e-4)}


def test_sessions_of_different_models_and_chunk_lengths_can_be_given_together():
    audio = [speech(30000 + 1000 * n, n).numpy() for n in range(5)]
    first = recognizer("student_stream", 320)
    other = recognizer("student_stream", 320)  # of the same sizes, with other weights
    with torch.no_grad():
        other.network.output.weight.neg_()
    sessions = [first, first.new_session(), other, recognizer("student_stream_fbank"), recognizer("student_stream")]
    assert sessions[1].network is first.network
    accept_together(sessions, audio)
    for session, samples in zip(sessions, audio, strict=True):
        alone = session.new_session()
        alone.accept_waveform(samples)
        streamed, expected = session.finish(), alone.finish()
        assert streamed["tokens"], "a test of results needs tokens"
        assert (streamed["text"], streamed["audio_s"]) == (expected["text"], expected["audio_s"])


def test_sessions_that_share_a_network_are_one_batch(monkeypatch):
    first, sizes = recognizer("student_stream", 320), []
    sessions, stream_together = [first, first.new_session(), first.new_session()], first.network.stream_together

    def record_size(states):
        sizes.append(len(states))
        return stream_together(states)

    monkeypatch.setattr(first.network, "stream_together", record_size)
    accept_together(sessions, [speech(11000, n).numpy() for n in range(3)])
    assert sizes == [3, 3]


def test_a_session_that_does_not_stream_is_refused_before_any_audio_is_taken():
    sessions = [recognizer("student_stream", 320), recognizer("teacher", 320)]
    with pytest.raises(ValueError, match="only sessions of streaming students"):
        accept_together(sessions, [speech(100).numpy()] * 2)
    assert sessions[0].finish()["audio_s"] == 0


@pytest.mark.parametrize("factor", [1e-6, 100.0])
def test_faint_and_clipped_audio_give_finite_results(factor):
    session = recognizer("student_stream")
    session.accept_waveform((speech(16000) * factor).clamp(-1, 1).numpy())
    assert all(np.isfinite(token["confidence"]) for token in session.finish()["tokens"])


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Directories as trainings leave them, and two recordings."""
    root = tmp_path_factory.mktemp("experiments")
    small = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2,
             "ffn": 48, "kernel": 7}  # fmt: skip
    for name, make, extra in (
        ("student_stream", student, {"network": "student", "network_conf": small, **STREAMING}),
        (
            "teacher",
            teacher,
            {"network": "teacher", "network_conf": {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}},
        ),
    ):
        (root / name).mkdir()
        config = {"token_list": TOKENS, "token_type": "char", **extra}
        (root / name / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({f"network.{k}": v for k, v in make().state_dict().items()}, root / name / "model.pth")
    for name, samples in (("a.wav", 24000), ("b.wav", 1)):
        soundfile.write(root / name, speech(samples).numpy(), 16000)
    soundfile.write(root / "fast.wav", speech(100).numpy(), 44100)
    return root


@pytest.mark.parametrize("model", ["student_stream", "teacher"])
def test_transcribe_json(experiments, capsys, model):
    files = [str(experiments / "a.wav"), str(experiments / "b.wav")]
    main(["--model", str(experiments / model), "--chunk_ms", "320", "--json", *files])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(e["file"], e["event"]) for e in events] == [(files[0], "partial")] * 4 + [(f, "final") for f in files]
    late = 0.01 if model == "student_stream" else 0.0  # 5 ms of look-ahead, with audio in pieces of 10 ms
    assert [e["audio_s"] for e in events[:4]] == pytest.approx([0.32 * i + late for i in range(1, 5)])
    for event in events:
        assert set(event) == {"file", *Result.__annotations__}
        check(event, event["event"], event["audio_s"])


def test_transcribe_text(experiments, capsys):
    files = [str(experiments / "a.wav"), str(experiments / "b.wav")]
    main(["--model", str(experiments / "student_stream"), *files])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(files[0] + " ") and lines[1].startswith(files[1])
    assert "[   0.49 s]" in captured.err


def test_transcribe_stdin(experiments):
    audio, _ = soundfile.read(experiments / "a.wav", dtype="int16")
    command = [sys.executable, "-m", "distill.bin.transcribe", "--model", str(experiments / "student_stream"), "--json"]
    run = subprocess.run([*command, "-", str(experiments / "a.wav")], input=audio.tobytes(), capture_output=True)
    events = [json.loads(line) for line in run.stdout.splitlines()]
    piped, read = (events[: len(events) // 2], events[len(events) // 2 :])
    assert [(e["event"], e["text"], e["audio_s"], e["tokens"]) for e in piped] == [
        (e["event"], e["text"], e["audio_s"], e["tokens"]) for e in read
    ]
    run = subprocess.run([*command, "-"], input=b"abc", capture_output=True, text=False)
    assert run.returncode == 2 and b"one byte" in run.stderr


def test_transcribe_refuses_bad_audio(experiments):
    command = [sys.executable, "-m", "distill.bin.transcribe", "--model", str(experiments / "student_stream")]
    run = subprocess.run([*command, str(experiments / "fast.wav")], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert "44100" in line and "sox" in line


def test_how_long_frames_wait():
    session = recognizer("student_stream_fbank")  # the front end sees 37.5 ms beyond a chunk
    assert session.step_ms == 480
    assert session.wait_ms == (517.5, 277.5)
    session = recognizer("student_stream_ahead", 240)  # of 240 ms, 120 are look-ahead; 5 ms of the CNN's window
    assert session.step_ms == 120
    assert session.wait_ms == (245, 185)
