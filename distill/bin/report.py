"""Make the report page of an experiment: one HTML file with results, figures, losses, layers, errors and their audio.

    python -m distill.bin.report --expdir exp --data dump/raw --valid_set valid

writes EXPDIR/report/index.html, which needs no other file and no network. It shows what is there: results.json of
stage 13, bench.json of stage 14, the trainings' configurations and losses, and the decoded utterances. The results
of experiments in directories beside EXPDIR (exp_s5, exp_seed1 ...) join the plot of errors against size.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.report.page import write_report


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--expdir", type=Path, required=True, help="of the experiment, such as exp")
    parser.add_argument(
        "--data", type=Path, default=Path("dump/raw"), help="directory of SET/wav.scp and text (default: dump/raw)"
    )
    parser.add_argument("--valid_set", default="valid", help="for the similarity of layers (default: valid)")
    parser.add_argument("--num_errors", type=int, default=12, help="utterances with errors to show (default: 12)")
    parser.add_argument("--num_utts", type=int, default=8, help="utterances for the similarity; 0: none (default: 8)")
    parser.add_argument(
        "--num_alignments",
        type=int,
        default=3,
        help="utterances whose tokens are shown over the spectrogram; 0: none (default: 3)",
    )
    parser.add_argument("--output", type=Path, help="file to write (default: EXPDIR/report/index.html)")
    write_report(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
