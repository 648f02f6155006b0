"""Results of recognition on the terminal, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from distill.errors import printable


class ResultPrinter:
    """Prints final results to stdout and partial ones to stderr, where a terminal shows the latest on one line.

    A final result without words has no line, unless it is the end of the audio.

    Neither a model's tokens nor a file's name get characters to a terminal that it would obey.

    Args:
        as_json: print every result to stdout instead, as a JSON object on a line of its own.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._terminal = sys.stderr.isatty()
        self._partial_text = ""

    def show(self, result: Mapping[str, Any], **fields: str) -> None:
        """Print a result; ``fields`` such as the file's name come before its text, or first in its JSON object."""
        if self._as_json:
            print(printable(json.dumps({**fields, **result}, ensure_ascii=False)), flush=True)
        elif result["event"] == "final":
            if self._terminal and self._partial_text:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            if result["text"] or result["endpoint"] == "end":
                print(*map(printable, (*fields.values(), result["text"])), flush=True)
            self._partial_text = ""
        elif result["text"] != self._partial_text:
            self._partial_text = result["text"]
            line = printable(f"[{result['audio_s']:7.2f} s] {result['text']}")
            start, end = ("\r\033[K", "") if self._terminal else ("", "\n")
            print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
