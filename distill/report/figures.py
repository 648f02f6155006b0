"""The report's headline and tables, from results.json, bench.json and the parity report of an export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill.scoring.tables import (
    FIXED,
    PUBLISHED,
    computed_on,
    format_interval,
    format_latency,
    recognises,
    teachers_of,
    times_faster,
)

Row = Mapping[str, Any]

PAPER_LOSS = (PUBLISHED["relative_loss_low"], PUBLISHED["relative_loss_high"])  # relative, per cent
UNITS = {"wer": "words", "ter": "tokens"}
SIGNIFICANT = 0.05
STYLES = {"teacher": "teacher", "student_full": "full", "student_stream": "stream", "student_full_no_kd": "plain"}
NAMES = {
    "teacher": "teacher",
    "student_full": "student, full context",
    "student_stream": "streaming student",
    "student_full_no_kd": "student without a teacher",
}


def system_name(system: str) -> str:
    """Name for a reader: ``streaming student``, ``student for 320 ms alone``."""
    if system.startswith(FIXED):
        return f"student for {system[len(FIXED) :]} ms alone"
    return NAMES.get(system, system)


def style_of(system: str) -> str:
    """CSS class of a system's colour in style.css."""
    return "fixed" if system.startswith(FIXED) else STYLES.get(system, "plain")


def first_decoder(rows: Sequence[Row]) -> str:
    """The decoder that the page is about: greedy if there is such a row, since every system has it."""
    decoders = [row["decoder"] for row in rows]
    return "greedy" if "greedy" in decoders else decoders[0]


def teacher_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The teacher's row for the same test set and decoder."""
    return teachers_of(rows).get((row["test_set"], row["decoder"]))


def main_row(rows: Sequence[Row]) -> Row:
    """The row that the page is about: the streaming student at the latency nearest to 480 ms, on the first test set.

    Without a streaming student, the full-context student, or the last system of that set.
    """
    decoder = first_decoder(rows)
    candidates = [row for row in rows if row["test_set"] == rows[0]["test_set"] and row["decoder"] == decoder]
    streaming = [row for row in candidates if row["system"] == "student_stream" and row["latency_ms"] is not None]
    if streaming:
        return min(streaming, key=lambda row: abs(math.log(row["latency_ms"] / PUBLISHED["latency_ms"])))
    return next((row for row in candidates if row["system"] in ("student_stream", "student_full")), candidates[-1])


class Speeds:
    """Real-time factors: of the benchmark (stage 14) if it measured a system, else of decoding (stage 12).

    Args:
        bench: bench.json, whose ``speed`` has rows of system, latency_ms, runtime, params, model_bytes, rtf, threads.
    """

    def __init__(self, bench: Mapping[str, Any]) -> None:
        self.rows: list[Row] = bench.get("speed") or []
        self.measured = bool(self.rows)

    def row(self, row: Row) -> Row:
        """The benchmark's row for a row of the results, in torch on the fewest threads; without one, the row itself."""
        same = (row["system"], row["latency_ms"])
        measured = [r for r in self.rows if (r["system"], r["latency_ms"]) == same and r.get("runtime") == "torch"]
        return min(measured, key=lambda r: r["threads"]) if measured else row

    def faster(self, row: Row, teacher: Row) -> float | None:
        """How many times faster than the teacher; None if only one of the two was benchmarked."""
        student_speed, teacher_speed = self.row(row), self.row(teacher)
        if (student_speed is row) != (teacher_speed is teacher):
            return None
        return times_faster([({"audio_s": 1.0, **student_speed}, {"audio_s": 1.0, **teacher_speed})])


def times(ratio: float | None, more: str, less: str) -> str:
    """Format a ratio as ``4.0× smaller`` or ``2.5× slower``; None as a dash."""
    if ratio is None:
        return "–"
    value, word = (ratio, more) if ratio >= 0.995 else (1 / ratio, less)
    return f"{value:.2g}× {word}" if value < 99.5 else f"{value:,.0f}× {word}"


def signed(percent: float) -> str:
    """Format a difference as ``+16.7 %`` or ``−3.1 %``."""
    return f"{percent:+.1f} %".replace("-", "−")


class Tile(NamedTuple):
    """One figure in large print: its name, value, details, and the paper's figure beside it."""

    name: str
    value: str
    detail: str
    paper: str


def headline(rows: Sequence[Row], row: Row, speeds: Speeds) -> tuple[str, str, list[Tile]]:
    """The result in a sentence, its significance in another, and figures beside the paper's."""
    teacher = teacher_of(rows, row)
    where = "with full context" if row["latency_ms"] is None else f"at {row['latency_ms']} ms"
    wer = f"{row['wer']:.2f} %"
    unit, words = row["unit"].upper(), UNITS[row["unit"]]
    tiles = [Tile(f"{unit} {where}", wer, f"95 %: {format_interval(row['wer_low'], row['wer_high'])}", "")]
    if teacher is None or row is teacher:
        return f"The {system_name(row['system'])} has {wer} of the {words} wrong {where}.", "", tiles
    if not recognises(teacher) or not recognises(row):
        which = "teacher" if not recognises(teacher) else system_name(row["system"])
        sentence = f"The {which} recognises too little for any conclusion: {wer} of the {words} are wrong {where}"
        return f"{sentence}, of the teacher's {teacher['wer']:.2f} %.", "", tiles
    detail = f"teacher {teacher['wer']:.2f} %"
    if row.get("relative_loss") is not None:
        span = format_interval(row.get("relative_low"), row.get("relative_high"))
        detail += f", relative loss {signed(row['relative_loss'])} ({span})"
    tiles[0] = tiles[0]._replace(detail=detail, paper=f"+{PAPER_LOSS[0]:g} to +{PAPER_LOSS[1]:g} % relative")
    smaller, faster = teacher["params"] / row["params"], speeds.faster(row, teacher)
    params = f"{millions(row['params'])} of {millions(teacher['params'])} parameters"
    tiles.append(Tile("Size", times(smaller, "smaller", "larger"), params, f"{PUBLISHED['smaller']}× smaller"))
    if faster is not None:
        speed, teacher_speed = speeds.row(row), speeds.row(teacher)
        detail = f"real-time factor {speed['rtf']:.3g}, teacher {teacher_speed['rtf']:.3g}, {computed_on(speed)}"
        tiles.append(Tile("Speed", times(faster, "faster", "slower"), detail, f"{PUBLISHED['faster']}× faster"))
    sentence = f"{times(smaller, 'smaller', 'larger')} and {'streaming ' if row['latency_ms'] else ''}{where}: "
    sentence += f"{wer} of the {words} wrong, where the teacher has {teacher['wer']:.2f} %"
    errors, teacher_errors = (r["sub"] + r["del"] + r["ins"] for r in (row, teacher))
    significance = f"{errors:,} errors in {row['words']:,} {words} against {teacher_errors:,}"
    p = row.get("p_value")
    if p is not None:
        significance += ", a significant difference" if p < SIGNIFICANT else ", no significant difference"
        significance += f" (p {'< 0.001' if p < 0.001 else f'= {p:.2g}'})"
    return sentence, significance + ".", tiles


def millions(count: int) -> str:
    """Format a count as ``0.34 M``."""
    return f"{count / 1e6:.3g} M"


class TableRow(NamedTuple):
    """A row of the table of results; ``cells`` are WER, its interval and relative loss, by test set."""

    style: str
    system: str
    latency: str
    decoder: str
    size: str
    faster: str
    cells: list[tuple[str, str, str]]
    main: bool


def result_table(rows: Sequence[Row], main: Row, speeds: Speeds) -> tuple[list[str], list[TableRow]]:
    """Test sets, and a row for every system, latency and decoder."""
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    lines: dict[tuple, list[Row]] = {}
    for row in rows:
        lines.setdefault((row["system"], row["latency_ms"], row["decoder"]), []).append(row)
    table = []
    for (system, latency_ms, decoder), system_rows in lines.items():
        by_set = {row["test_set"]: row for row in system_rows}
        cells = []
        for test_set in test_sets:
            if test_set not in by_set:
                cells.append(("–", "", ""))
                continue
            row = by_set[test_set]
            compared = recognises(row) and recognises(teacher_of(rows, row) or row)
            loss = row.get("relative_loss") if compared else None
            span = format_interval(row["wer_low"], row["wer_high"])
            cells.append((f"{row['wer']:.2f}", span, "" if loss is None else signed(loss)))
        first = system_rows[0]
        teacher = teacher_of(rows, first)
        faster = None if teacher is None else speeds.faster(first, teacher)
        table.append(
            TableRow(
                style_of(system),
                system_name(system),
                format_latency(latency_ms),
                decoder,
                millions(first["params"]),
                "–" if faster is None else f"{faster:.2g}×",
                cells,
                (system, latency_ms, decoder) == (main["system"], main["latency_ms"], main["decoder"]),
            )
        )
    return test_sets, table


class Exported(NamedTuple):
    """A model of an export, from parity.json."""

    name: str
    latency: str
    megabytes: float
    ms_per_chunk: float | None
    same_text: str
    word_errors: str
    difference: float
    offered: bool


RUNTIMES = {
    "float32": "onnxruntime, float32",
    "int8": "onnxruntime, int8",
    "streams_float32": "onnxruntime, many streams, float32",
    "streams_int8": "onnxruntime, many streams, int8",
    "sherpa_float32": "sherpa-onnx, float32",
    "sherpa_int8": "sherpa-onnx, int8",
}


def export_rows(parity: Mapping[str, Any]) -> list[Exported]:
    """Size, speed and agreement with torch of every exported model."""
    rows = []
    for report in parity.get("exports") or []:
        for kind, name in RUNTIMES.items():
            if kind not in report:
                continue
            row = report[kind]
            rows.append(
                Exported(
                    name,
                    format_latency(report["chunk_ms"]),
                    row["bytes"] / 1e6,
                    row.get("ms_per_chunk"),
                    f"{row['identical_texts']:,} of {row['utterances']:,}",
                    f"{row['word_errors']:,} of {row['words']:,}",
                    row["max_log_prob_difference"],
                    "int8" not in kind or report.get("int8_offered", True),
                )
            )
    return rows
