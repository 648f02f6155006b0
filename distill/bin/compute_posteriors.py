"""Log-posteriors of a teacher's or a student's tokens as a Kaldi ark, for Kaldi's decoders.

    python -m distill.bin.compute_posteriors --model exp/student_stream --data_dir data/test --output ark:post.ark
    python -m distill.bin.compute_posteriors --model exp/student_stream --data_dir data/train --mean --output priors.vec
    python -m distill.bin.compute_posteriors --model exp/student_stream --data_dir data/test --priors priors.vec \\
        --output ark:- | decode-faster --acoustic-scale=1.0 TLG.fst ark:- ark,t:-

The second command writes the mean posteriors; with them the third one writes log-likelihoods. Column j is the input
label j + 1 of the decoding graph.
"""

from __future__ import annotations

import sys
from pathlib import Path

from distill.bin.arguments import add_computation, chunk_length, new_parser
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="training's directory, or packed model")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory with wav.scp")
    parser.add_argument("--output", required=True, help="ark:FILE, ark:- or ark,scp:FILE,FILE; with --mean a file")
    parser.add_argument("--chunk_ms", type=chunk_length, help="chunk length of a stream in ms, or full (default: full)")
    parser.add_argument("--priors", type=Path, help="counts or probabilities of the tokens: write log-likelihoods")
    parser.add_argument("--prior_scale", type=float, default=1.0, help="of the log-priors (default: 1)")
    parser.add_argument("--mean", action="store_true", help="write the mean posteriors, for --priors")
    parser.add_argument("--job", type=int, default=1, help="this job, from 1")
    parser.add_argument("--num_jobs", type=int, default=1)
    add_computation(parser)
    args = parser.parse_args(argv)

    from distill.recognition.posteriors import compute_posteriors

    settings = dict(vars(args))
    count = compute_posteriors(settings.pop("model"), settings.pop("data_dir"), settings.pop("output"), **settings)
    print(f"{args.output}: {count} utterances", file=sys.stderr)


if __name__ == "__main__":
    main()
