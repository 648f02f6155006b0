"""Export a streaming student for onnxruntime and sherpa-onnx, and check what comes out against torch.

    python -m distill.bin.export --model exp/student_stream --data_dirs dump/raw/test --output exp/export \\
        --chunk_ms 160 480

writes for every chunk length

    student_480ms.onnx, student_480ms.int8.onnx   for distill.export.recognizer, which needs onnxruntime and numpy alone
    sherpa_480ms.onnx, sherpa_480ms.int8.onnx     the same for sherpa-onnx, as a model of the type t-one
    tokens.txt                                    for sherpa-onnx
    parity.json                                   how each compares with torch on the utterances of --data_dirs

It fails, and writes nothing, if a log-posterior in float32 is off by more than 0.001. The audio is rounded to 16 bits,
as sherpa-onnx does that. Where int8 is slower than float32, or has more than 1.02 times its word errors, there are no
int8 files, and parity.json says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError, cli

if TYPE_CHECKING:
    from distill.checkpoints.load import LoadedNetwork
    from distill.export.parity import Utterance


def read_utterances(data_dirs: list[Path], most: int) -> list[Utterance]:
    """The first ``most`` utterances of each Kaldi data directory."""
    import numpy as np

    from distill.audio import read_audio, read_wav_scp
    from distill.export.parity import Utterance
    from distill.scoring.text import read_text

    utterances = []
    for data_dir in data_dirs:
        texts = read_text(data_dir / "text") if (data_dir / "text").is_file() else {}
        for utterance, path in list(read_wav_scp(data_dir / "wav.scp").items())[:most]:
            if utterance not in texts:
                raise UserError(f"{data_dir / 'text'}: has no {utterance}; the check needs what is said")
            audio = np.round(read_audio(path) * 32768).clip(-32767, 32767) / np.float32(32768)
            utterances.append(Utterance(audio.astype(np.float32), texts[utterance]))
    return utterances


def export(
    loaded: LoadedNetwork, origin: Path, chunk_ms: int, folder: Path, utterances: list[Utterance]
) -> dict[str, Any]:
    """Write and check the files of one chunk length; what is said of it in parity.json."""
    from tqdm import tqdm

    from distill.export import model as onnx_model
    from distill.export import parity
    from distill.export.sherpa import sherpa_metadata, sherpa_model
    from distill.models.student import Student

    network, token_list, config = loaded
    shapes = onnx_model.shapes_for(network, config, chunk_ms, origin)
    assert isinstance(network, Student)
    step = onnx_model.step_model(network, shapes)
    properties = onnx_model.metadata(network, shapes, token_list, config.get("token_type", "char"), chunk_ms)
    files: dict[str, Path] = {}
    for kind, model in (("float32", step), ("int8", onnx_model.quantized(step))):
        end = ".onnx" if kind == "float32" else f".{kind}.onnx"
        files[kind], files[f"sherpa_{kind}"] = (
            folder / f"student_{chunk_ms}ms{end}",
            folder / f"sherpa_{chunk_ms}ms{end}",
        )
        wrapped = sherpa_model(model, shapes)
        onnx_model.save(wrapped, files[f"sherpa_{kind}"], {**properties, **sherpa_metadata(wrapped)})
        onnx_model.save(model, files[kind], properties)
    compared = {
        kind: parity.sherpa_comparison(path, folder / "tokens.txt")
        if kind.startswith("sherpa")
        else parity.onnx_comparison(path)
        for kind, path in files.items()
    }
    reference = parity.torch_reference(network, token_list, config, chunk_ms)
    for utterance in tqdm(utterances, desc=f"check of {chunk_ms} ms", unit="utt", mininterval=1):
        log_probs, text = reference(utterance.audio)
        for comparison in compared.values():
            comparison.add(utterance, log_probs, text)
    times = parity.step_times([files["float32"], files["int8"]], utterances)
    report: dict[str, Any] = {"chunk_ms": chunk_ms}
    for kind, path in files.items():
        report[kind] = {"file": path.name, "bytes": path.stat().st_size, **compared[kind].report()}
    for kind, milliseconds in zip(("float32", "int8"), times, strict=True):
        report[kind]["ms_per_chunk"] = milliseconds
    for kind in ("float32", "sherpa_float32"):
        difference = report[kind]["max_log_prob_difference"]
        if not difference <= parity.LOG_PROB_BOUND:
            raise UserError(
                f"{origin}: exported for {chunk_ms} ms ({kind}), log-posteriors differ from torch's by "
                f"{difference:.2g}, more than {parity.LOG_PROB_BOUND}; this is a fault of the export, please report it"
            )
    reasons = []
    if times[1] > times[0]:
        reasons.append(f"a chunk takes {times[1]:.2f} ms, in float32 {times[0]:.2f} ms")
    for kind in ("int8", "sherpa_int8"):
        errors, before = report[kind]["word_errors"], report[kind.replace("int8", "float32")]["word_errors"]
        if errors > parity.INT8_LOSS * before:
            reasons.append(f"{errors} word errors ({kind}), in float32 {before}")
    report["int8_offered"] = not reasons
    report["int8_reasons"] = reasons
    if reasons:
        files["int8"].unlink()
        files["sherpa_int8"].unlink()
    return report


def table(report: dict[str, Any]) -> str:
    """What a terminal shows of one chunk length."""
    lines = [
        f"{report['chunk_ms']:4} ms {'log-prob difference':>28} {'same text as torch':>23} {'word errors':>17} "
        f"{'MB':>8} ms/chunk"
    ]
    for kind in ("float32", "int8", "sherpa_float32", "sherpa_int8"):
        row = report[kind]
        milliseconds = f"{row['ms_per_chunk']:8.2f}" if "ms_per_chunk" in row else "       -"
        lines.append(
            f"{kind:15} {row['max_log_prob_difference']:20.2g} {row['identical_texts']:15} of {row['utterances']:<8} "
            f"{row['word_errors']:6} of {row['words']:<7} {row['bytes'] / 1e6:8.1f} {milliseconds}"
        )
    if report["int8_reasons"]:
        lines.append(f"int8 is not offered: {'; '.join(report['int8_reasons'])}")
    return "\n".join(lines)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a streaming student's training")
    parser.add_argument("--data_dirs", type=Path, nargs="+", required=True, help="with wav.scp and text, for the check")
    parser.add_argument("--output", type=Path, required=True, help="directory to write; an earlier export is replaced")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="chunk lengths (default: 480)")
    parser.add_argument("--num_utts", type=int, default=300, help="of each data directory, the first (default: 300)")
    args = parser.parse_args(argv)

    import torch

    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package}: not installed, but the export needs it; pip install 'distillw2v2[deploy]'")

    from distill.checkpoints.load import load_network, model_checksum
    from distill.export import exported
    from distill.export.sherpa import sherpa_tokens
    from distill.files import atomic_write

    torch.set_num_threads(1)
    if args.output.exists() and not exported(args.output) and any(args.output.iterdir()):
        raise UserError(f"{args.output}: holds something else than an export; give another --output")
    loaded = load_network(args.model)
    utterances = read_utterances(args.data_dirs, args.num_utts)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=f".{args.output.name}.") as name:
        folder = Path(name, "export")
        folder.mkdir()
        with atomic_write(folder / "tokens.txt") as stream:
            stream.write(sherpa_tokens(loaded.token_list, loaded.config.get("token_type", "char")))
        reports = []
        for chunk_ms in dict.fromkeys(args.chunk_ms):
            reports.append(export(loaded, args.model, chunk_ms, folder, utterances))
            print(table(reports[-1]), flush=True)
        about = {
            "model_checksum": model_checksum(args.model),
            "data": [str(data_dir) for data_dir in args.data_dirs],
            "exports": reports,
        }
        with atomic_write(folder / "parity.json") as stream:
            json.dump(about, stream, indent=1)
        if args.output.exists():
            shutil.rmtree(args.output)
        folder.rename(args.output)
    print(f"exported to {args.output}")


if __name__ == "__main__":
    main()
