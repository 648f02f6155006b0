"""Tabulate trainings that differ in one thing each, over several random seeds, from their scores.

    python -m distill.bin.ablation --expdir exp_ablation --test_sets "test test_unseen" --note "10 epochs" \\
        < conditions.tsv

reads a condition per line from stdin (name, kind and what differs, separated by tabs), and the scores of
EXPDIR/NAME_seedN/student_*/decode_*/SET. Conditions of the kinds stream and direct are compared with the condition
``stream``, the others with ``default``, seed by seed. The interval of a difference is the 95 % one of Student's t over
the seeds; with one seed there is none. Writes EXPDIR/ablation.json and, from it, EXPDIR/ABLATION.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.scoring.ablation import write_ablation


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--expdir", type=Path, required=True, help="directory of the trainings")
    parser.add_argument("--test_sets", required=True, help="names, separated by spaces")
    parser.add_argument("--note", required=True, help="how long the trainings were, for the heading")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="ablation.json with other seeds, to join")
    write_ablation(**vars(parser.parse_args(argv)), conditions=sys.stdin)


if __name__ == "__main__":
    main()
