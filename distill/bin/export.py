"""Export a streaming student for onnxruntime and sherpa-onnx, and compare the result with torch.

    python -m distill.bin.export --model exp/student_stream --data_dirs dump/raw/test --output exp/export \\
        --chunk_ms 160 480

writes for every chunk length

    student_480ms.onnx, student_480ms.int8.onnx   for distill.export.recognizer, in onnxruntime
    streams_480ms.onnx, streams_480ms.int8.onnx   the same for many streams at once, for servers
    sherpa_480ms.onnx, sherpa_480ms.int8.onnx     for sherpa-onnx, as a model of its type zipformer2-ctc (students with
                                                  the log-mel front end) or t-one (raw audio)
    tokens.txt                                    for sherpa-onnx
    parity.json                                   how each compares with torch on the utterances of --data_dirs
    web/                                          a page that recognises in the browser, for the first chunk length

It fails, and writes nothing, if log-posteriors in float32 differ by more than 0.001 in more than one frame of 10,000,
or by more than 0.01. The audio is rounded to 16 bits, as sherpa-onnx does. Where int8 is slower than float32, or has
more than 1.02 times its word errors, there are no int8 files, and parity.json says why.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli, require


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a streaming student's training, or packed model")
    parser.add_argument("--data_dirs", type=Path, nargs="+", required=True, help="with wav.scp and text, for the check")
    parser.add_argument("--output", type=Path, required=True, help="directory to write; an earlier export is replaced")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="chunk lengths (default: 480)")
    parser.add_argument("--num_utts", type=int, default=300, help="check so many of each data directory (default: 300)")
    args = parser.parse_args(argv)
    require("onnx", "onnxruntime", "sherpa_onnx", extra="deploy")

    from distill.export.export import export_model

    export_model(args.model, args.data_dirs, args.output, args.chunk_ms, args.num_utts)


if __name__ == "__main__":
    main()
