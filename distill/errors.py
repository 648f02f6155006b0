"""One way to tell a user what is wrong: a line that names file, line and cure, and exit status 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: ``FILE:LINE: what is wrong; what to do``."""


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command's ``main`` so that a :class:`UserError` ends as one line on stderr and exit status 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapped
