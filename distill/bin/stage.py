"""Compare a stage with its last run, before it (begin) and after it (finish).

python -m distill.bin.stage begin exp/.stages/10 --options "$opts" conf/train_student_full.yaml exp/.stages/7
  exit status 0: it was finished before and nothing has changed, skip it
  exit status 3: it is to be run, and may continue what an earlier run left
  exit status 4: it is to be run, and what an earlier run left was made from other inputs; --output was renamed
python -m distill.bin.stage finish exp/.stages/10
"""

from __future__ import annotations

import sys
from pathlib import Path

from distill import stamps
from distill.bin.arguments import new_parser
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("action", choices=("begin", "finish"))
    parser.add_argument("stamp", type=Path, help="the stage's stamp file, such as exp/.stages/10")
    parser.add_argument("inputs", nargs="*", help="files that the stage reads")
    parser.add_argument("--options", default="", help="options of the stage, as one string")
    parser.add_argument("--output", default="", help="file or directory that the stage makes, renamed if it is stale")
    parser.add_argument("--force", action="store_true", help="run the stage again even if nothing has changed")
    args = parser.parse_intermixed_args(argv)
    if args.action == "finish":
        stamps.finish(args.stamp)
    else:
        output = Path(args.output) if args.output else None
        sys.exit(stamps.begin(args.stamp, args.options, args.inputs, output, args.force))


if __name__ == "__main__":
    main()
