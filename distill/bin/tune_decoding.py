"""Choose the weight of the language model and the bonus per word on the validation set, never on a test set.

    python -m distill.bin.tune_decoding --model exp/student_stream --chunk_ms 480 --data_dir dump/raw/valid \\
        --decoder beam wfst --lm exp/lm/words.arpa --output exp/student_stream/tuned.json

The network runs once, the decoder for every pair of the grid on a part of the set, and for the quarter of them that
leads there on all of it. Among pairs with equal WER the lowest weight is chosen, then the bonus nearest to 0. The file
holds both values for each decoder, and the whole grid.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distill.bin.arguments import chunk_length, new_parser
from distill.bin.decoding_arguments import add_decoding, decode_conf
from distill.errors import UserError, cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a training's directory, or packed model")
    parser.add_argument("--data_dir", type=Path, required=True, help="validation set: wav.scp and text")
    parser.add_argument("--chunk_ms", type=chunk_length, help="chunk length in ms, or full (default: full)")
    parser.add_argument("--decoder", nargs="+", choices=("beam", "wfst"), required=True)
    parser.add_argument("--lm_weights", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5])
    parser.add_argument("--word_bonuses", type=float, nargs="+", default=[-1.0, 0.0, 1.0, 2.0])
    parser.add_argument(
        "--max_utterances", type=int, default=500, help="use at most so many, spread over the set (default: 500)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    add_decoding(parser)
    args = parser.parse_args(argv)
    if args.lm is None:
        raise UserError("--lm: required, as its weight is tuned")
    decoders = [dataclasses.replace(decode_conf(args, decoder), nbest=1) for decoder in args.decoder]

    from distill.recognition.tune import tune

    grid = args.lm_weights, args.word_bonuses
    tune(args.model, args.data_dir, args.chunk_ms, decoders, *grid, args.max_utterances, args.threads, args.output)


if __name__ == "__main__":
    main()
