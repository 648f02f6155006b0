"""What is printed while a recording is recognised."""

from __future__ import annotations

import json

from distill.decode.display import ResultPrinter


def result(event: str, text: str, audio_s: float) -> dict:
    return {"event": event, "text": text, "audio_s": audio_s}


RESULTS = [
    result("partial", "", 0.1), result("partial", "go", 0.5), result("partial", "go", 1.0),
    result("partial", "go left", 1.5), result("final", "go left", 2.0), result("partial", "go", 2.5),
]  # fmt: skip


def test_a_partial_text_is_printed_once_and_a_final_one_on_stdout(capsys):
    printer = ResultPrinter(as_json=False)
    for one in RESULTS:
        printer.show(one, file="some.wav")
    printed = capsys.readouterr()
    assert printed.out == "some.wav go left\n"
    assert printed.err == "[   0.50 s] go\n[   1.50 s] go left\n[   2.50 s] go\n"


def test_a_terminal_shows_the_latest_partial_text_on_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    printer = ResultPrinter(as_json=False)
    for one in RESULTS[:5]:
        printer.show(one)
    printed = capsys.readouterr()
    assert printed.out == "go left\n"
    assert printed.err == "\r\033[K[   0.50 s] go\r\033[K[   1.50 s] go left\r\033[K"


def test_as_json_every_result_is_a_line(capsys):
    printer = ResultPrinter(as_json=True)
    for one in RESULTS:
        printer.show(one, file="some.wav")
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [{"file": "some.wav", **one} for one in RESULTS]
    assert printed.err == ""
