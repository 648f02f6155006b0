"""Options of commands that end results by rules."""

from __future__ import annotations

import argparse

from distill.decode.stream_results import RULES, EndpointRules

HELP = {
    "silence": "silence behind the last word that ends a result",
    "empty": "silence without a word that does",
    "length": "longest result",
}


def milliseconds(text: str) -> int | None:
    """Type of an option: milliseconds, or None for ``none``."""
    return None if text == "none" else int(text)


def add_endpoints(parser: argparse.ArgumentParser, defaults: EndpointRules | None) -> None:
    """Add an option for each of the :class:`EndpointRules`; without ``defaults`` the server has them."""
    group = parser.add_argument_group("endpoint rules", "milliseconds, or none")
    for name in RULES:
        default = "the server's" if defaults is None else getattr(defaults, name) or "none"
        earlier = ["--endpoint_ms"] if name == "silence" else []  # goes with the next release
        group.add_argument(
            f"--{name}",
            *earlier,
            type=milliseconds,
            default=argparse.SUPPRESS if defaults is None else getattr(defaults, name),
            metavar="MS",
            help=f"{HELP[name]} (default: {default})",
        )


def endpoint_options(args: argparse.Namespace) -> dict[str, int | None]:
    """The values of :func:`add_endpoints`, by rule; without those that were left to the server."""
    return {name: getattr(args, name) for name in RULES if hasattr(args, name)}
