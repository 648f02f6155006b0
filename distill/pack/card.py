"""The model card: README.md with the front matter of Hugging Face's hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import yaml

from distill.configuration import Float, Int, checked
from distill.errors import UserError
from distill.files import yaml_text
from distill.scoring.tables import format_interval, in_one_unit, literal

UNSTATED = (
    "The licence of these weights was not stated when they were packed. They derive from the training data and from "
    "the teacher's weights, whose terms apply: ask whoever gave you this file before you pass it on or build on it."
)
PAPER = "[DistillW2V2](https://arxiv.org/abs/2303.09278) (Fu, Kang, Cao, Ma, 2023)"
METHODS = {
    "teacher": "A wav2vec 2.0 recogniser, full context, of the kind that small students are distilled from.",
    "student_full": "A small recogniser, full context, distilled from a wav2vec 2.0.",
    "student_full_no_kd": "A small recogniser, full context, trained without a teacher.",
    "student_stream": "A small streaming recogniser, distilled from a wav2vec 2.0 in two stages.",
}


class Delay(TypedDict):
    """What the card uses of a row of the latencies in bench.json."""

    chunk_ms: Int
    wait_worst_ms: Float
    wait_mean_ms: Float
    compute_median_ms: Float
    delay_median_ms: NotRequired[Float | None]


class Bench(TypedDict):
    """What the card uses of bench.json."""

    latency: NotRequired[list[Delay] | None]


def check_bench(bench: dict[str, Any], path: Path) -> None:
    """Check what the card uses of the content of bench.json.

    Raises:
        UserError: something is missing, or of another type.
    """
    try:
        checked(Bench, "", bench)
    except UserError as error:
        raise UserError(f"{path}: not the measurements of an experiment: {error}; run stage 14 again") from None


class Licence(NamedTuple):
    """Licence of the weights: its identifier on Hugging Face's hub, such as cc-by-4.0, and the text of LICENSE.txt."""

    name: str
    text: str


def model_card(
    file_name: str,
    system: str,
    licence: Licence,
    language: str | None,
    config: Mapping[str, Any] | None,
    params: int | None,
    results: Mapping[str, Any] | None,
    bench: Mapping[str, Any] | None,
    has_torch: bool,
    has_onnx: bool,
    for_transformers: bool = False,
) -> str:
    """Text of the card of ``system``, packed in ``file_name``.

    Args:
        file_name: of the archive.
        system: name of the training, such as student_stream.
        licence: of the weights.
        language: ISO 639 code; None leaves it out.
        config: of the training; None leaves it out.
        params: number of parameters; None leaves it out.
        results: content of results.json; None leaves it out.
        bench: content of bench.json; None leaves it out.
        has_torch: whether the archive has the weights for torch.
        has_onnx: whether the archive has exported models.
        for_transformers: whether it is no archive but a directory for the library transformers.
    """
    rows = in_one_unit([row for row in (results or {}).get("rows", []) if row["system"] in ("teacher", system)])
    title = system if results is None else f"{system} of {results['recipe']}"
    about = front_matter(title, system, licence, language, rows, (results or {}).get("recipe"))
    lines = ["---", about, *(["library_name: transformers"] if for_transformers else []), "---", ""]
    rows = literal(rows)
    lines += [f"# {literal(title)}", "", METHODS.get(system, METHODS["student_stream"]), ""]
    lines += facts(config, params, rows, system)
    lines += [
        "",
        "## Use",
        "",
        *(usage_in_transformers(file_name) if for_transformers else usage(file_name, has_torch, has_onnx)),
    ]
    if rows:
        lines += ["", "## Results", "", *results_table(rows)]
    if bench and bench.get("latency") and system == "student_stream":
        lines += ["", "## Latency", "", *latency_table(bench)]
    short = len(licence.text) < 1000
    lines += ["", "## Licence", "", licence.text.strip() if short else f"{licence.name}, see LICENSE.txt"]
    lines += [
        "",
        "The model was trained with an extension of [ESPnet](https://github.com/espnet/espnet), which is Apache-2.0.",
    ]
    if config is not None:
        shown = {key: value for key, value in config.items() if key != "token_list"}
        text = yaml_text(shown)
        fence = "`" * (max([2, *map(len, re.findall("`+", text))]) + 1)  # longer than any in the text
        lines += [
            "",
            "## Configuration",
            "",
            "<details><summary>expand</summary>",
            "",
            f"{fence}yaml",
            text + fence,
            "",
        ]
        lines += ["</details>"]
    lines += ["", f"The method is that of {PAPER}, as far as it is published."]
    return "\n".join(lines) + "\n"


def front_matter(
    title: str, system: str, licence: Licence, language: str | None, rows: list[dict], recipe: str | None
) -> str:
    """YAML for the hub: licence, language, task, and the WERs of greedy decoding as a model index."""
    about: dict[str, Any] = {"license": licence.name}
    if language:
        about["language"] = language
    about["tags"] = ["espnet", "audio", "automatic-speech-recognition"]
    if system.startswith("student"):
        about["tags"] += ["wav2vec2", "knowledge-distillation"]
    if system.startswith("student_stream"):
        about["tags"] += ["streaming"]
    about["pipeline_tag"] = "automatic-speech-recognition"
    greedy = [row for row in rows if row["system"] == system and row["decoder"] == "greedy"]
    if greedy:
        results = [
            {
                "task": {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"},
                "dataset": {"type": recipe, "name": recipe, "split": row["test_set"]},
                "metrics": [
                    {
                        "type": row["unit"],
                        "value": round(row["wer"], 2),
                        "name": f"{row['unit'].upper()}, {latency_name(row)}",
                    }
                ],
            }
            for row in greedy
        ]
        about["model-index"] = [{"name": title, "results": results}]
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).rstrip()


def latency_name(row: Mapping[str, Any]) -> str:
    """``480 ms`` or ``full context``."""
    return "full context" if row["latency_ms"] is None else f"{row['latency_ms']} ms"


def facts(config: Mapping[str, Any] | None, params: int | None, rows: list[dict], system: str) -> list[str]:
    """Size, tokens and chunks, as lines of a list."""
    lines = []
    teacher = next((row for row in rows if row["system"] == "teacher"), None)
    if params is not None:
        against = ""
        if teacher and system != "teacher":
            against = f", {teacher['params'] / params:.1f} times fewer than its teacher's"
        lines.append(f"- {params / 1e6:.2f} M parameters{against}")
    lines.append("- audio: 16 kHz, one channel")
    if config is not None:
        lines.append(f"- {len(config['token_list'])} tokens ({config['token_type']})")
        chunk = config.get("chunk_conf")
        if chunk:
            lines.append(f"- streams in chunks of any length in {chunk.get('chunk_ms')} ms, look-ahead included")
    return lines


def usage(file_name: str, has_torch: bool, has_onnx: bool) -> list[str]:
    """How to recognise a file with the model."""
    lines = [
        "With the toolkit installed (`pip install .` in its directory):",
        "",
        f"    python -m distill.bin.transcribe --model {file_name} audio.wav",
    ]
    if has_torch:
        lines += [
            "",
            "or in Python:",
            "",
            "    from distill.streaming import Recognizer",
            f'    recognizer = Recognizer.from_pretrained("{file_name}", chunk_ms=480)',
            '    print(recognizer.recognize(samples)["text"])',
        ]
    if has_onnx:
        lines += ["", "`exp/export` in the archive holds the model for onnxruntime and sherpa-onnx, without torch."]
    return lines


def usage_in_transformers(directory: str) -> list[str]:
    """How to recognise a file with the directory that transformers loads."""
    return [
        "With the toolkit installed (`pip install '.[transformers]'` in its directory), in Python:",
        "",
        "    from transformers import pipeline",
        f'    recognise = pipeline("automatic-speech-recognition", "{directory}", trust_remote_code=True)',
        '    print(recognise("audio.wav")["text"])  # by ffmpeg; without it: soundfile.read("audio.wav")[0]',
        "",
        "`chunk_ms` in config.json is the latency at which a streaming student recognises; null is full context.",
    ]


def results_table(rows: list[dict]) -> list[str]:
    """WER of the system and its teacher, by test set, latency and decoder."""
    rate = rows[0]["unit"].upper()
    lines = [
        f"| test set | system | latency | decoder | {rate} % (95 %) | loss against the teacher % |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        loss = row.get("relative_loss")
        low, high = row.get("wer_low"), row.get("wer_high")
        cells = [row["test_set"], row["system"], latency_name(row), row["decoder"]]
        cells += [f"{row['wer']:.2f} ({format_interval(low, high)})", "-" if loss is None else f"{loss:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def latency_table(bench: Mapping[str, Any]) -> list[str]:
    """How long a frame waits, and computation, by chunk length."""
    lines = [
        "| chunk | a frame waits, at worst and on average, ms | computation per chunk, ms | token delay, median, ms |",
        "|---" * 4 + "|",
    ]
    for row in bench["latency"]:
        delay = row.get("delay_median_ms")
        lines.append(
            f"| {row['chunk_ms']} ms | {row['wait_worst_ms']:.0f}, {row['wait_mean_ms']:.0f} "
            f"| {row['compute_median_ms']:.1f} | {'-' if delay is None else f'{delay:.0f}'} |"
        )
    return lines
