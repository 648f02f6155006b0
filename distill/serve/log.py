"""Log lines of a server: a JSON object each, and only so many of a kind."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

from aiohttp.http import HttpProcessingError

LINES_AT_ONCE, SECONDS_PER_LINE = 5, 10  # of one kind
FIELDS = ("address", "code", "error", "connections", "audio_s", "seconds")  # of `extra`
EVENT, TRACEBACK = 300, 4000  # characters, from the beginning and from the end


@dataclass
class Kind:
    """How many lines of a kind may be written now, and how many were left out since the last one."""

    lines: float = LINES_AT_ONCE
    then: float = 0.0
    left_out: int = 0


class RateLimit(logging.Filter):
    """Lets :data:`LINES_AT_ONCE` lines from one place of the code through, and one each :data:`SECONDS_PER_LINE`."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: defaultdict[tuple[str, int, int], Kind] = defaultdict(Kind)

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = self._kinds[record.pathname, record.lineno, record.levelno], time.monotonic()
        kind.lines = min(LINES_AT_ONCE, kind.lines + (now - kind.then) / SECONDS_PER_LINE)
        kind.then = now
        if kind.lines < 1:
            kind.left_out += 1
            return False
        kind.lines -= 1
        record.left_out, kind.left_out = kind.left_out, 0
        return True


class JsonLines(logging.Formatter):
    """A record as one line: time, level, event, the fields of its ``extra``, and how many like it were left out."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {"time": f"{seconds}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line["event"] = record.getMessage()[:EVENT]
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["error"] = f"{type(error).__name__}: {error}"[:EVENT]
            if not isinstance(error, HttpProcessingError):  # a request that is none has nothing to do with the code
                line["traceback"] = self.formatException(record.exc_info)[-TRACEBACK:]
        if left_out := getattr(record, "left_out", 0):
            line["left_out"] = left_out
        return json.dumps(line)


def log_to_stderr() -> None:
    """Write warnings of all packages and the server's events to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RateLimit())
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("distill.serve").setLevel(logging.INFO)
