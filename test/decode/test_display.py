"""Results on a terminal."""

import json

import pytest

from distill.decode.display import ResultPrinter
from distill.errors import UserError, cli

BAD = "a\x1b]0;title\x07\x9b2J\u202eb\x7f"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("event", ["final", "partial"])
def test_nothing_that_a_terminal_obeys_is_printed(capsys, as_json, event):
    result = {"event": event, "endpoint": None, "text": BAD, "audio_s": 1.0, "tokens": [{"token": BAD}]}
    ResultPrinter(as_json).show(result, file=f"{BAD}.wav")

    @cli
    def main() -> None:
        raise UserError(BAD)

    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert not set(printed.out + printed.err) & set("\x1b\x07\x9b\u202e\x7f")
    if as_json:
        assert json.loads(printed.out)["file"].endswith(".wav")


def test_results_without_words_have_no_line_but_the_last(capsys):
    printer = ResultPrinter(as_json=False)
    for text, endpoint in (("", "empty"), ("a b", "silence"), ("", "length"), ("", "end")):
        printer.show({"event": "final", "text": text, "endpoint": endpoint, "audio_s": 1.0})
    assert capsys.readouterr().out == "a b\n\n"
