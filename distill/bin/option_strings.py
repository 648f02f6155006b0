"""Checks of a recipe's options that hold options of other commands, such as --decode_options "--nbest 10"."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from distill.bin.arguments import add_computation, new_parser
from distill.bin.decoding_arguments import add_decoding
from distill.bin.pack import pack_parser
from distill.bin.plan import plan_parser
from distill.configuration import read_conf
from distill.errors import UserError
from distill.preflight.configurations import SECTIONS


def decoding_parser() -> argparse.ArgumentParser:
    parser = new_parser(None)
    add_computation(parser)
    add_decoding(parser)
    return parser


def training_parser() -> argparse.ArgumentParser:
    # Takes seconds to import, and ESPnet prints on stderr that an optional package is not installed
    with contextlib.redirect_stderr(io.StringIO()):
        from distill.training.distill_task import DistillTask

    return DistillTask.get_parser()


COMMANDS: dict[str, tuple[str, Callable[[], argparse.ArgumentParser]]] = {
    "teacher_args": ("train", training_parser),
    "student_full_args": ("train", training_parser),
    "student_stream_args": ("train", training_parser),
    "decode_options": ("decode", decoding_parser),
    "pack_options": ("pack", pack_parser),
    "plan_options": ("plan", plan_parser),
}


def string_problems(options: Mapping[str, str]) -> Iterator[str]:
    """Options inside options that their command does not have, or whose values it refuses; one line each."""
    announced = False
    for name, (command, make_parser) in COMMANDS.items():
        if not options[name].split():
            continue
        if command == "train" and not announced:
            announced = True
            print("checking the options of trainings, which takes some seconds", file=sys.stderr)
        parser = make_parser()
        for action in parser._actions:
            action.required = False

        known = sorted(parser._option_string_actions)

        def fail(message: str, known: list[str] = known) -> NoReturn:
            wrong = re.search("unrecognized arguments: (--[^ ]+)", message)
            near = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
            raise UserError(message + (f" ({near[0]}?)" if near else ""))

        parser.error = fail  # type: ignore[method-assign]
        try:
            given = parser.parse_args(options[name].split())
            for section, kind in SECTIONS.items() if command == "train" else ():
                read_conf(kind, section, getattr(given, section))
        except UserError as error:
            yield f"--{name} {options[name]}: {error}; python -m distill.bin.{command} --help lists what there is"
