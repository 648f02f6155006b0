"""Recognise test sets with a teacher or a student, in batches; a streaming student as it would recognise a stream.

    python -m distill.bin.decode --model exp/student_stream --chunk_ms 160 320 480 960 \\
        --data_dirs dump/raw/test dump/raw/test_unseen

writes MODEL/decode_480ms/SET/hyp.JOB.jsonl (a line per utterance: id, text, tokens and words with times, seconds of
audio), and without --chunk_ms, or for full, MODEL/decode_full/SET. Files that exist are kept. The utterances of the
sample are also recognised one at a time, in a stream if the model streams: their lines have the seconds of computation,
and the command fails if one differs from what the batch gave. Decoders other than greedy have directories of their own,
such as MODEL/decode_480ms_beam:

    python -m distill.bin.decode --model exp/student_stream --data_dirs dump/raw/test --decoder beam wfst \\
        --lm exp/lm/words.arpa --tuned exp/student_stream/tuned.json --nbest 5
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import add_computation, chunk_length, new_parser
from distill.bin.decoding_arguments import add_decoding, decode_conf
from distill.decode.settings import DECODERS
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a training's directory, or packed model")
    parser.add_argument("--output", type=Path, help="write below this directory (default: --model, if it is one)")
    parser.add_argument("--data_dirs", type=Path, nargs="+", required=True, help="directories with wav.scp")
    parser.add_argument(
        "--chunk_ms", type=chunk_length, nargs="*", default=[], help="chunk lengths in ms, or full (default: full)"
    )
    parser.add_argument("--job", type=int, default=1, help="this job, from 1")
    parser.add_argument("--num_jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, for comparable speeds)")
    add_computation(parser)
    parser.add_argument(
        "--sample", type=int, default=20, help="utterances of a set to recognise one at a time as well (default: 20)"
    )
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=["greedy"], help="(default: greedy)")
    add_decoding(parser)
    args = parser.parse_args(argv)
    decoders = [decode_conf(args, decoder) for decoder in args.decoder]

    from distill.recognition.decode import BatchConf, decode_sets

    chunk_ms = args.chunk_ms or [None]
    how = BatchConf(args.device, args.batch_seconds, args.sample, args.threads)
    decode_sets(args.model, args.data_dirs, chunk_ms, decoders, args.output, args.job, args.num_jobs, how)


if __name__ == "__main__":
    main()
