"""Pack a trained model into one file that loads wherever the toolkit is installed.

    python -m distill.bin.pack --model exp/student_stream --export exp/export --results exp/results.json \\
        --bench exp/bench.json --license cc-by-4.0 --language en --output student.zip
    python -m distill.bin.transcribe --model student.zip some.wav

The file is a zip in ESPnet's layout: meta.yaml, README.md (a model card, with the front matter of Hugging Face's hub),
LICENSE.txt, weights as safetensors, configuration, tokens, results, and the ONNX models of an export. It holds no path
of this machine, and the same inputs give the same bytes. --export alone packs an export, which needs no torch.

--format transformers writes a directory with safetensors, tokenizer and model card for the library transformers
instead. Where this toolkit is installed, AutoModelForCTC.from_pretrained(DIR, trust_remote_code=True) and
pipeline("automatic-speech-recognition", DIR, trust_remote_code=True) load it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.pack.pack import pack


def pack_parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, help="directory of a training, such as exp/student_stream")
    parser.add_argument("--export", type=Path, help="directory of its export, such as exp/export")
    parser.add_argument("--results", type=Path, help="exp/results.json, for the model card")
    parser.add_argument("--bench", type=Path, help="exp/bench.json, for the model card")
    parser.add_argument(
        "--license", default="unknown", metavar="ID", help="of the weights, as hubs call it, such as cc-by-4.0"
    )
    parser.add_argument("--license_file", type=Path, help="its text (default: a sentence)")
    parser.add_argument("--language", help="ISO 639 code, such as en, for the model card")
    parser.add_argument(
        "--format",
        choices=("zip", "transformers"),
        default="zip",
        help="transformers: a directory, without --export (default: zip)",
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write, FILE.zip, or the directory")
    return parser


@cli
def main(argv: list[str] | None = None) -> None:
    pack(**vars(pack_parser().parse_args(argv)))


if __name__ == "__main__":
    main()
