"""Check all options and configurations of a recipe before it runs; ./run.sh --check true does nothing else.

    python -m distill.bin.check_recipe stage=1 stop_stage=13 train_set=train ...

Every problem is a line on stderr that names an option or file and a cure; the exit status is then 2. With check=true it
also says that nothing is wrong, and how long the training utterances are, where that is known.
"""

from __future__ import annotations

import argparse
import sys

from distill.bin.arguments import new_parser
from distill.bin.option_strings import string_problems
from distill.errors import cli
from distill.preflight import problems, report_lengths


def option(text: str) -> tuple[str, str]:
    """Type of an argument: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("options", nargs="+", type=option, metavar="NAME=VALUE", help="every option of run.sh")
    options = dict(parser.parse_args(argv).options)
    wrong = [*problems(options), *string_problems(options)]
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    if wrong:
        sys.exit(2)
    if options["check"] == "true":
        print(
            f"stages {options['stage']} to {options['stop_stage']}: nothing wrong with options, configurations, machine"
            "; audio and transcripts are checked in stage 1"
        )
        report_lengths(options)


if __name__ == "__main__":
    main()
