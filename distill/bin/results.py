"""Gather every score of an experiment in EXPDIR/results.json, and make EXPDIR/RESULTS.md from that file alone.

    python -m distill.bin.results --expdir exp --test_sets "test test_unseen" --recipe egs2/fsdd/asr_distill1

Intervals are 95 % of a paired bootstrap over utterances; p values are of a matched-pairs test. Both compare a system
with the teacher that was decoded in the same way.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.scoring.results import write_results


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--expdir", type=Path, required=True, help="directory of the experiment, such as exp")
    parser.add_argument("--test_sets", required=True, help="names, separated by spaces")
    parser.add_argument("--recipe", required=True, help="name of the recipe, for the heading")
    write_results(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
