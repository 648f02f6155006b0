"""Export of a streaming student to ONNX files for onnxruntime and sherpa-onnx, with a check against torch.

For every chunk length it writes

    student_480ms.onnx, student_480ms.int8.onnx   for distill.export.recognizer, in onnxruntime
    streams_480ms.onnx, streams_480ms.int8.onnx   the same for many streams at once, for servers
    sherpa_480ms.onnx, sherpa_480ms.int8.onnx     for sherpa-onnx, as a model of its type zipformer2-ctc (students with
                                                  the log-mel front end) or t-one (raw audio)
    tokens.txt                                    for sherpa-onnx
    parity.json                                   how each compares with torch on the utterances of some data
    web/                                          a page that recognises in the browser, for the first chunk length

Audio is rounded to 16 bits for the check, as sherpa-onnx does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distill.audio import read_audio, read_wav_scp
from distill.checkpoints.load import LoadedNetwork, load_network, model_checksum
from distill.errors import UserError
from distill.export import exported, parity, web_page
from distill.export import model as onnx_model
from distill.export.parity import Utterance
from distill.export.sherpa import sherpa_tokens
from distill.export.step import Shapes
from distill.files import atomic_write
from distill.models.student import Student
from distill.scoring.text import read_text


def read_utterances(data_dirs: list[Path], count: int) -> list[Utterance]:
    """The first ``count`` utterances of each Kaldi data directory, with audio rounded to 16 bits."""
    utterances = []
    for data_dir in data_dirs:
        texts = read_text(data_dir / "text") if (data_dir / "text").is_file() else {}
        for utterance, path in list(read_wav_scp(data_dir / "wav.scp").items())[:count]:
            if utterance not in texts:
                raise UserError(f"{data_dir / 'text'}: has no {utterance}; the check needs its transcript")
            audio = np.round(read_audio(path) * 32768).clip(-32767, 32767) / np.float32(32768)
            utterances.append(Utterance(audio.astype(np.float32), texts[utterance]))
    return utterances


def export_chunk_length(
    loaded: LoadedNetwork, origin: Path, chunk_ms: int, folder: Path, utterances: list[Utterance]
) -> dict[str, Any]:
    """Write the files of one chunk length to ``folder``, compare them with torch, and return the report.

    Args:
        loaded: the student.
        origin: where it was loaded from, for messages.

    Raises:
        UserError: a float32 model's log-posteriors are not torch's, see :func:`parity.is_equal`.
    """
    network, token_list, config = loaded
    shapes = onnx_model.shapes_for(network, config, chunk_ms, origin)
    assert isinstance(network, Student)
    step = onnx_model.step_model(network, shapes)
    properties = onnx_model.metadata(network, shapes, token_list, config.get("token_type", "char"), chunk_ms)
    files: dict[str, Path] = {}
    models = {"float32": step, "int8": onnx_model.quantized(step)}
    sherpa_models = onnx_model.sherpa_models(network, shapes, models)
    streams = onnx_model.slot_model(network, shapes)
    streams_models = {"float32": streams, "int8": onnx_model.quantized(streams)}
    for kind, model in models.items():
        suffix = ".onnx" if kind == "float32" else f".{kind}.onnx"
        files[kind] = folder / f"student_{chunk_ms}ms{suffix}"
        files[f"sherpa_{kind}"] = folder / f"sherpa_{chunk_ms}ms{suffix}"
        files[f"streams_{kind}"] = folder / f"streams_{chunk_ms}ms{suffix}"
        onnx_model.save(streams_models[kind], files[f"streams_{kind}"], properties)
        wrapped, about = sherpa_models[kind]
        onnx_model.save(wrapped, files[f"sherpa_{kind}"], {**properties, **about})
        onnx_model.save(model, files[kind], properties)
    report = compare(loaded, chunk_ms, shapes, files, folder / "tokens.txt", utterances)
    for kind in ("float32", "streams_float32", "sherpa_float32"):
        difference = report[kind]["max_log_prob_difference"]
        if not parity.is_equal(report[kind]):
            frames = f"in {report[kind]['frames_beyond_bound']} of {report[kind]['frames']} frames"
            raise UserError(
                f"{origin}: exported for {chunk_ms} ms ({kind}), log-posteriors differ from torch's by "
                f"{difference:.2g}, more than {parity.LOG_PROB_BOUND} {frames}; this is a bug of the export, report it"
            )
    report["int8_reasons"] = reasons_against_int8(report)
    report["int8_offered"] = not report["int8_reasons"]
    if report["int8_reasons"]:
        for kind in ("int8", "streams_int8", "sherpa_int8"):
            files[kind].unlink()
    return report


def compare(
    loaded: LoadedNetwork,
    chunk_ms: int,
    shapes: Shapes,
    files: dict[str, Path],
    tokens: Path,
    utterances: list[Utterance],
) -> dict[str, Any]:
    """Compare exported files, by kind, with the student in torch; returns the figures of parity.json by kind."""
    network, token_list, config = loaded
    assert isinstance(network, Student)
    comparisons = {
        kind: parity.sherpa_comparison(path, tokens, network, shapes, chunk_ms)
        if kind.startswith("sherpa")
        else parity.onnx_comparison(path, batch=kind.startswith("streams"))
        for kind, path in files.items()
    }
    reference = parity.torch_reference(network, token_list, config, chunk_ms)
    for utterance in tqdm(utterances, desc=f"check of {chunk_ms} ms", unit="utt", mininterval=1):
        log_probs, text = reference(utterance.audio)
        for comparison in comparisons.values():
            comparison.add(utterance, log_probs, text)
    times = parity.step_times([files["float32"], files["int8"]], utterances)
    report: dict[str, Any] = {"chunk_ms": chunk_ms}
    for kind, path in files.items():
        report[kind] = {"file": path.name, "bytes": path.stat().st_size, **comparisons[kind].report()}
    for kind, milliseconds in zip(("float32", "int8"), times, strict=True):
        report[kind]["ms_per_chunk"] = milliseconds
    return report


def reasons_against_int8(report: dict[str, Any]) -> list[str]:
    """Why int8 files are not worth having: slower than float32, or too many more word errors. Empty if they are."""
    reasons = []
    int8_ms, float32_ms = report["int8"]["ms_per_chunk"], report["float32"]["ms_per_chunk"]
    if int8_ms > float32_ms:
        reasons.append(f"a chunk takes {int8_ms:.2f} ms, in float32 {float32_ms:.2f} ms")
    for int8, float32 in ((f"{form}int8", f"{form}float32") for form in ("", "streams_", "sherpa_")):
        errors, float32_errors = report[int8]["word_errors"], report[float32]["word_errors"]
        if errors > parity.INT8_LOSS * float32_errors:
            reasons.append(f"{errors} word errors ({int8}), in float32 {float32_errors}")
    return reasons


def table(report: dict[str, Any]) -> str:
    """The report of one chunk length as lines for a terminal."""
    lines = [
        f"{report['chunk_ms']:4} ms {'log-prob difference':>28} {'same text as torch':>23} {'word errors':>17} "
        f"{'MB':>8} ms/chunk"
    ]
    for kind in (f"{form}{weights}" for form in ("", "streams_", "sherpa_") for weights in ("float32", "int8")):
        row = report[kind]
        milliseconds = f"{row['ms_per_chunk']:8.2f}" if "ms_per_chunk" in row else "       -"
        lines.append(
            f"{kind:15} {row['max_log_prob_difference']:20.2g} {row['identical_texts']:15} of {row['utterances']:<8} "
            f"{row['word_errors']:6} of {row['words']:<7} {row['bytes'] / 1e6:8.1f} {milliseconds}"
        )
    if report["int8_reasons"]:
        lines.append(f"int8 is not offered: {'; '.join(report['int8_reasons'])}")
    return "\n".join(lines)


def export_model(model: Path, data_dirs: list[Path], output: Path, chunk_ms: list[int], utterances: int) -> None:
    """Export a student for several chunk lengths, check it, and print a table for each; nothing is left after an error.

    Args:
        model: directory of a streaming student's training, or a packed model.
        data_dirs: Kaldi data directories with wav.scp and text, for the check.
        output: directory to write. An earlier export there is replaced.
        chunk_ms: chunk lengths.
        utterances: number of utterances of each data directory to check, its first ones.

    Raises:
        UserError: ``output`` holds other files, the model cannot be exported, or the check fails.
    """
    torch.set_num_threads(1)
    if output.exists() and not exported(output) and any(output.iterdir()):
        raise UserError(f"{output}: holds other files than an export; give another --output")
    loaded = load_network(model)
    checked = read_utterances(data_dirs, utterances)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
        folder = Path(name, "export")
        folder.mkdir()
        with atomic_write(folder / "tokens.txt") as stream:
            stream.write(sherpa_tokens(loaded.token_list, loaded.config.get("token_type", "char")))
        reports = []
        for length in dict.fromkeys(chunk_ms):
            reports.append(export_chunk_length(loaded, model, length, folder, checked))
            print(table(reports[-1]), flush=True)
        about = {
            "model_checksum": model_checksum(model),
            "data": [str(data_dir) for data_dir in data_dirs],
            "exports": reports,
        }
        with atomic_write(folder / "parity.json") as stream:
            json.dump(about, stream, indent=1)
        web = web_page.write_page_of(folder, reports[0])
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    print(f"exported to {output}")
    if web:
        print(f"recognition in a browser: python3 -m http.server --directory {output / 'web'}")
    else:
        print("no page that recognises in a browser: that takes npm, and its registry or what it has cached")
