"""Pack a trained model and its export into one zip file in ESPnet's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import __version__
from distill.checkpoints.archive import write_archive
from distill.errors import UserError
from distill.pack.card import UNSTATED, Licence, check_bench, model_card
from distill.pack.contents import (
    Members,
    export_members,
    json_bytes,
    public_config,
    read_json,
    training_members,
)
from distill.pack.transformers_directory import write_directory
from distill.scoring.tables import check_results


def pack(
    model: Path | None,
    export: Path | None,
    results: Path | None,
    bench: Path | None,
    license: str,
    license_file: Path | None,
    language: str | None,
    output: Path,
    format: str = "zip",
) -> None:
    """Write the archive, or the directory for transformers, and print a line about it.

    Args:
        model: directory of a training; or None to pack an export alone, which needs no torch.
        export: directory of an export; or None.
        results: results.json, for the model card; or None.
        bench: bench.json, for the model card; or None.
        license: of the weights, as hubs name it.
        license_file: its text; None writes a sentence.
        language: ISO 639 code; or None.
        output: the archive, FILE.zip; or the directory.
        format: zip or transformers.
    """
    if model is None and export is None:
        raise UserError("pack: give --model, --export or both")
    if format == "transformers" and (model is None or export is not None):
        raise UserError("--format transformers: needs --model DIR, and has no place for an --export")
    if format == "zip" and output.suffix != ".zip":
        raise UserError(f"--output {output}: must end in .zip")
    licence = Licence(license, _licence_text(license, license_file))
    results_content, bench_content = (None if path is None else read_json(path) for path in (results, bench))
    if results_content is not None and results is not None:
        check_results(results_content, results)
    if bench_content is not None and bench is not None:
        check_bench(bench_content, bench)
    for row in (results_content or {}).get("rows", []):
        row.pop("speakers", None)  # names of speakers stay private

    members: Members = {"LICENSE.txt": (licence.text.strip() + "\n").encode()}
    meta: dict[str, Any] = {"distillw2v2": __version__, "files": {}, "yaml_files": {}, "models": {}}
    system, config, params = "student_stream", None, None
    if model is not None:
        system = model.resolve().name
        config, params = _add_training(model, system, members, meta)
    if export is not None:
        members |= {f"exp/export/{name}": path for name, path in export_members(export).items()}
        meta["models"]["onnx"] = "exp/export"
    for name, content in (("results", results_content), ("bench", bench_content)):
        if content is not None:
            members[f"exp/{name}.json"] = json_bytes(content)
    card = model_card(
        output.name,
        system,
        licence,
        language,
        config,
        params,
        results_content,
        bench_content,
        has_torch=model is not None,
        has_onnx=export is not None,
        for_transformers=format == "transformers",
    )
    members["README.md"] = card.encode()
    if format == "transformers" and config is not None:
        places = {
            "README.md": "",
            "LICENSE.txt": "",
            "model.safetensors": f"exp/{system}/",
            "tokens.txt": f"exp/{system}/",
        }
        write_directory(config, {name: members[place + name] for name, place in places.items()}, output)
        return
    write_archive(output, members, meta)
    print(f"{output}: {system}, {output.stat().st_size / 1e6:.1f} MB in {len(members) + 1} members")


def _licence_text(license: str, license_file: Path | None) -> str:
    """Text of LICENSE.txt."""
    if license_file is None:
        return UNSTATED if license == "unknown" else f"The weights are under {license}."
    try:
        return license_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{license_file}: not a text file; give the text of the licence") from None


def _add_training(
    directory: Path, system: str, members: Members, meta: dict[str, Any]
) -> tuple[Mapping[str, Any], int]:
    """Add weights, configuration and tokens of a training; its public configuration and number of parameters."""
    from distill.checkpoints.load import load_network

    network, _, config = load_network(directory)
    place = f"exp/{system}"
    members.update(
        {f"{place}/{name}": content for name, content in training_members(directory, config, network).items()}
    )
    meta["files"]["asr_model_file"] = f"{place}/model.safetensors"
    meta["yaml_files"]["asr_train_config"] = f"{place}/config.yaml"
    meta["models"]["torch"] = place
    if config.get("version"):
        meta["espnet"] = str(config["version"])
    return public_config(config), sum(p.numel() for p in network.parameters())
