"""Pack a trained model into one file that loads wherever the toolkit is installed.

    python -m distill.bin.pack --model exp/student_stream --export exp/export --results exp/results.json \\
        --bench exp/bench.json --license cc-by-4.0 --language en --output student.zip
    python -m distill.bin.transcribe --model student.zip some.wav

The file is a zip in ESPnet's layout: meta.yaml, README.md (a model card, with the front matter of Hugging Face's hub),
LICENSE.txt, weights as safetensors, configuration, tokens, results, and the ONNX models of an export. It holds no path
of this machine, and the same inputs give the same bytes. --export alone packs an export, which needs no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill import __version__
from distill.checkpoints.archive import write_archive
from distill.errors import UserError, cli
from distill.pack.card import UNSTATED, Licence, model_card
from distill.pack.contents import export_members, json_bytes, public_config, read_json, training_members


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a training, such as exp/student_stream")
    parser.add_argument("--export", type=Path, help="directory of its export, such as exp/export")
    parser.add_argument("--results", type=Path, help="exp/results.json, for the model card")
    parser.add_argument("--bench", type=Path, help="exp/bench.json, for the model card")
    parser.add_argument(
        "--license", default="unknown", metavar="ID", help="of the weights, as hubs call it, such as cc-by-4.0"
    )
    parser.add_argument("--license_file", type=Path, help="its text (default: a sentence)")
    parser.add_argument("--language", help="ISO 639 code, such as en, for the model card")
    parser.add_argument("--output", type=Path, required=True, help="file to write, FILE.zip")
    args = parser.parse_args(argv)
    if args.model is None and args.export is None:
        raise UserError("pack: give --model, --export or both")
    if args.output.suffix != ".zip":
        raise UserError(f"--output {args.output}: must end in .zip")
    text = UNSTATED if args.license == "unknown" else f"The weights are under {args.license}."
    if args.license_file is not None:
        try:
            text = args.license_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{args.license_file}: not a text file; give the text of the licence") from None
    licence = Licence(args.license, text)
    results, bench = (None if path is None else read_json(path) for path in (args.results, args.bench))
    for row in (results or {}).get("rows", []):
        row.pop("speakers", None)  # who they are is not for everyone who gets the model

    members: dict[str, bytes | Path] = {"LICENSE.txt": (text.strip() + "\n").encode()}
    meta: dict[str, Any] = {"distillw2v2": __version__, "files": {}, "yaml_files": {}, "models": {}}
    system, config, params = "student_stream", None, None
    if args.model is not None:
        from distill.checkpoints.load import load_network

        network, _, config = load_network(args.model)
        params = sum(p.numel() for p in network.parameters())
        system = args.model.resolve().name
        place = f"exp/{system}"
        members |= {f"{place}/{name}": c for name, c in training_members(args.model, config, network).items()}
        meta["files"]["asr_model_file"] = f"{place}/model.safetensors"
        meta["yaml_files"]["asr_train_config"] = f"{place}/config.yaml"
        meta["models"]["torch"] = place
        if config.get("version"):
            meta["espnet"] = str(config["version"])
        config = public_config(config)
    if args.export is not None:
        members |= {f"exp/export/{name}": path for name, path in export_members(args.export).items()}
        meta["models"]["onnx"] = "exp/export"
    for name, content in (("results", results), ("bench", bench)):
        if content is not None:
            members[f"exp/{name}.json"] = json_bytes(content)
    card = model_card(
        args.output.name,
        system,
        licence,
        args.language,
        config,
        params,
        results,
        bench,
        has_torch=args.model is not None,
        has_onnx=args.export is not None,
    )
    members["README.md"] = card.encode()
    write_archive(args.output, members, meta)
    print(f"{args.output}: {system}, {args.output.stat().st_size / 1e6:.1f} MB in {len(members) + 1} members")


if __name__ == "__main__":
    main()
