"""Write the graph of the decoder wfst for Kaldi's decoders: OUTPUT/TLG.fst, OUTPUT/words.txt and OUTPUT/tokens.txt.

    python -m distill.bin.make_decoding_graph --model exp/student_stream --lm exp/lm/words.arpa --lm_weight 0.5 \\
        --output exp/student_stream/graph

Costs are negative natural logarithms, so decode with acoustic scale 1.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.bin.decoding_arguments import add_decoding, decode_conf
from distill.errors import cli
from distill.recognition.write_decoding_graph import write_decoding_graph


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a training's directory, or packed model")
    parser.add_argument("--output", type=Path, required=True, help="directory of the graph")
    add_decoding(parser)
    args = parser.parse_args(argv)
    states = write_decoding_graph(args.model, decode_conf(args, "wfst"), args.output)
    print(f"{args.output}/TLG.fst: {states} states")


if __name__ == "__main__":
    main()
