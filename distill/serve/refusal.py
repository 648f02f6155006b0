"""What ends a session with an error message to its client."""

from __future__ import annotations

from aiohttp import WSCloseCode

LONGEST = 200  # characters of a message


class Refusal(Exception):
    """Ends a session with an error message to its client.

    Args:
        code: identifies the reason for programs (docs/server.md).
        message: is made one line of printable characters, since it may quote the client.
        close_code: of the websocket.
    """

    def __init__(self, code: str, message: str, close_code: int = WSCloseCode.POLICY_VIOLATION) -> None:
        super().__init__(one_line(message))
        self.code = code
        self.close_code = close_code


def one_line(text: str) -> str:
    """A text as one line of printable characters, at most :data:`LONGEST` of them."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST])
