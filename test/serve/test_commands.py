"""The two commands as a user runs them."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from tiny_networks import speech

SERVE = [sys.executable, "-m", "distill.bin.serve"]
CLIENT = [sys.executable, "-m", "distill.bin.stream_client"]


@pytest.fixture
def server(model):
    """(process, address of its websocket)"""
    with subprocess.Popen([*SERVE, "--model", model, "--port", "0"], stdout=-1, stderr=-1, text=True) as process:
        url = re.search(r"http://(127\.0\.0\.1:\d+)/", process.stdout.readline())
        yield process, f"ws://{url[1]}/stream"
        process.kill()


def client(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([*CLIENT, *arguments], input=data, capture_output=True, timeout=60)


def test_a_file_and_stdin(server, model, tmp_path):
    process, url = server
    wav = str(tmp_path / "a.wav")
    soundfile.write(wav, speech(32000).numpy(), 16000)
    expected = subprocess.run(
        [sys.executable, "-m", "distill.bin.transcribe", "--model", model, "--chunk_ms", "320", wav],
        capture_output=True, text=True,
    ).stdout.removeprefix(f"{wav} ").strip()  # fmt: skip
    assert len(expected) > 5
    started = time.monotonic()
    done = client("--url", url, "--chunk_ms", "320", wav)
    assert time.monotonic() - started > 2, "real time"
    assert done.stdout.decode().strip() == expected and b"[" in done.stderr
    raw = open(wav, "rb").read()[44:]
    done = client("--url", url, "--chunk_ms", "320", "--json", "-", data=raw)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["event"] for r in results] == ["partial"] * (len(results) - 1) + ["final"] and len(results) > 3
    assert results[-1]["text"] == expected
    assert client("--url", url, "--fast", "--chunk_ms", "320", wav).stdout.decode().strip() == expected
    rules = "--endpoint_ms", "none", "--empty", "500", "--length", "700"
    done = client("--url", url, "--fast", "--chunk_ms", "320", *rules, "--json", wav)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    lengths = [result["text"] for result in results if result["endpoint"] == "length"]
    assert lengths and expected.startswith(lengths[0].split()[0])
    done = client("--url", url, "--fast", "--chunk_ms", "320", *rules, wav)
    assert done.stdout.decode().split("\n")[: len(lengths)] == lengths
    started = time.monotonic()
    done = client("--url", url, "-", data=raw[:-1])
    assert (done.returncode, done.stderr.count(b"\n")) == (2, done.stderr.count(b"] ") + 1)
    assert b"has one byte" in done.stderr and time.monotonic() - started < 25
    done = client("--url", url, "--chunk_ms", "30", wav)
    assert done.returncode == 2 and b"choose among 160, 320, 480, 960" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_cleanly(server, tmp_path, sent):
    process, url = server
    soundfile.write(tmp_path / "long.wav", speech(160000).numpy(), 16000)
    speaking = subprocess.Popen([*CLIENT, "--url", url, str(tmp_path / "long.wav")], stdout=-1, stderr=-1, text=True)
    assert "[" in speaking.stderr.readline()  # a partial result
    process.send_signal(sent)
    assert process.wait(10) == 0
    (line,) = map(json.loads, process.stderr.read().splitlines())
    assert (line["level"], line["event"], line["address"]) == ("info", "session ended", "127.0.0.1")
    _, error = speaking.communicate(timeout=10)
    assert speaking.returncode == 2 and "error: " in error and "1001" in error and "Traceback" not in error


def test_errors_are_one_line(server, model, tmp_path):
    _, url = server
    port = re.search(r":(\d+)/", url)[1]
    (tmp_path / "bad.pem").write_text("no certificate")
    for arguments, words in [
        (["--model", model, "--port", port], "choose another --port"),
        (["--model", tmp_path], "config.yaml: not found"),
        (["--model", model, "--port", "70000"], "a port is a number from 0 to 65535"),
        (["--model", model, "--port", "-1"], "a port is a number from 0 to 65535"),
        *((["--model", model, "--session_s", value], "give positive numbers") for value in ("nan", "inf", "-1")),
        (["--model", model, "--sessions", "0"], "give positive numbers"),
        (["--model", model, "--empty", "50"], "empty: 50 ms is not within 100 to 600000"),
        (["--model", model, "--length", "0"], "length: 0 ms must be positive"),
        (["--model", model, "--silence", "long"], "--silence"),
        (["--model", model, "--chunk_ms", "33"], "not a positive multiple"),
        (["--model", model, "--port", "0", "--certificate", tmp_path / "bad.pem"], "expected a PEM file"),
        (["--model", model, "--port", "0", "--certificate", tmp_path / "none.pem"], "expected a PEM file"),
    ]:
        done = subprocess.run([*SERVE, *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: ") and words in done.stderr
    soundfile.write(tmp_path / "a.wav", speech(100).numpy(), 16000)
    done = client("--url", "ws://127.0.0.1:1/stream", str(tmp_path / "a.wav"))
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and b"is the server running there?" in done.stderr
