"""Write what was recognised of data sets as Kaldi text files.

python -m distill.bin.kaldi_text exp/student_stream/decode_480ms/test       writes .../test/text
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.recognition.kaldi_text import write_kaldi_text


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("decode_dirs", type=Path, nargs="+", help="directories with hyp.*.jsonl")
    args = parser.parse_args(argv)
    for directory in args.decode_dirs:
        print(f"{directory}/text: {write_kaldi_text(directory)} utterances")


if __name__ == "__main__":
    main()
