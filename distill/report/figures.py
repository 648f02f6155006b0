"""What the page shows of an experiment, as text, tables and plots, from results.json, bench.json and histories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill.report.history import TERMS, Curves
from distill.report.plots import Line, Mark, Plot, Scale, Tick, number, polyline, separate_labels
from distill.scoring.results import FIXED, PUBLISHED, interval

Row = Mapping[str, Any]

PAPER_LOSS = (PUBLISHED["relative_loss_low"], PUBLISHED["relative_loss_high"])  # relative, per cent
UNITS = {"wer": "words", "ter": "tokens"}
SIGNIFICANT = 0.05
LARGEST = 20  # px, radius of the largest bubble
STYLES = {"teacher": "teacher", "student_full": "full", "student_stream": "stream", "student_full_no_kd": "plain"}
NAMES = {
    "teacher": "teacher",
    "student_full": "student, full context",
    "student_stream": "streaming student",
    "student_full_no_kd": "student without a teacher",
}


def system_name(system: str) -> str:
    """For a reader: ``streaming student``, ``student for 320 ms alone``."""
    if system.startswith(FIXED):
        return f"student for {system[len(FIXED) :]} ms alone"
    return NAMES.get(system, system)


def style_of(system: str) -> str:
    """Class of a system's colour in style.css."""
    return "fixed" if system.startswith(FIXED) else STYLES.get(system, "plain")


def latency_name(latency_ms: int | None) -> str:
    """``480 ms``, or ``full`` context."""
    return "full" if latency_ms is None else f"{latency_ms} ms"


def first_decoder(rows: Sequence[Row]) -> str:
    """Greedy where there is such a row, as every system has it."""
    decoders = [row["decoder"] for row in rows]
    return "greedy" if "greedy" in decoders else decoders[0]


def teacher_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The teacher's row for the same test set and decoder."""
    same = (row["test_set"], row["decoder"])
    return next((r for r in rows if r["system"] == "teacher" and (r["test_set"], r["decoder"]) == same), None)


def main_row(rows: Sequence[Row]) -> Row:
    """The row the page is about: the streaming student at 480 ms or next to it, on the first test set.

    Where there is none, the last system of that set.
    """
    decoder = first_decoder(rows)
    mine = [row for row in rows if row["test_set"] == rows[0]["test_set"] and row["decoder"] == decoder]
    streaming = [row for row in mine if row["system"] == "student_stream" and row["latency_ms"] is not None]
    if streaming:
        return min(streaming, key=lambda row: abs(math.log(row["latency_ms"] / PUBLISHED["latency_ms"])))
    return next((row for row in mine if row["system"] in ("student_stream", "student_full")), mine[-1])


class Speeds:
    """Real-time factors: of stage 14 where it has measured a system, else of recognition, job beside job.

    Args:
        bench: bench.json, whose ``speed`` has rows of system, latency_ms, runtime, params, model_bytes, rtf, threads.
    """

    def __init__(self, bench: Mapping[str, Any]) -> None:
        self.rows: list[Row] = bench.get("speed") or []
        self.measured = bool(self.rows)

    def row(self, row: Row) -> Row:
        """The measurement that belongs to a row of the results: with torch, on the fewest threads."""
        same = (row["system"], row["latency_ms"])
        found = [r for r in self.rows if (r["system"], r["latency_ms"]) == same and r.get("runtime") == "torch"]
        return min(found, key=lambda r: r["threads"]) if found else row

    def faster(self, row: Row, teacher: Row) -> float | None:
        """How many times faster than the teacher; None where the two were measured in different ways."""
        mine, theirs = self.row(row), self.row(teacher)
        if (mine is row) != (theirs is teacher) or not mine.get("rtf") or not theirs.get("rtf"):
            return None
        return theirs["rtf"] / mine["rtf"]


def times(ratio: float | None, more: str, less: str) -> str:
    """``4.0× smaller``, ``2.5× slower``; a dash for None."""
    if ratio is None:
        return "–"
    value, word = (ratio, more) if ratio >= 0.995 else (1 / ratio, less)
    return f"{value:.2g}× {word}" if value < 99.5 else f"{value:,.0f}× {word}"


def signed(percent: float) -> str:
    """``+16.7 %``, ``−3.1 %``."""
    return f"{percent:+.1f} %".replace("-", "−")


class Tile(NamedTuple):
    """One figure in large print: what it is, its value, how it came about, and what the paper says of it."""

    name: str
    value: str
    detail: str
    paper: str


def headline(rows: Sequence[Row], row: Row, speeds: Speeds) -> tuple[str, str, list[Tile]]:
    """The result in a sentence, how sure it is, and figures beside the paper's."""
    teacher = teacher_of(rows, row)
    where = "with full context" if row["latency_ms"] is None else f"at {row['latency_ms']} ms"
    wer = f"{row['wer']:.2f} %"
    unit, words = row["unit"].upper(), UNITS[row["unit"]]
    tiles = [Tile(f"{unit} {where}", wer, f"95 %: {interval(row['wer_low'], row['wer_high'])}", "")]
    if teacher is None or row is teacher:
        return f"The {system_name(row['system'])} has {wer} of the {words} wrong {where}.", "", tiles
    detail = f"teacher {teacher['wer']:.2f} %"
    if row.get("relative_loss") is not None:
        span = interval(row.get("relative_low"), row.get("relative_high"))
        detail += f", relative loss {signed(row['relative_loss'])} ({span})"
    tiles[0] = tiles[0]._replace(detail=detail, paper=f"+{PAPER_LOSS[0]:g} to +{PAPER_LOSS[1]:g} % relative")
    smaller, faster = teacher["params"] / row["params"], speeds.faster(row, teacher)
    params = f"{millions(row['params'])} of {millions(teacher['params'])} parameters"
    tiles.append(Tile("Size", times(smaller, "smaller", "larger"), params, f"{PUBLISHED['smaller']}× smaller"))
    if faster is not None:
        mine, theirs = speeds.row(row), speeds.row(teacher)
        threads = "1 thread" if mine["threads"] == 1 else f"{mine['threads']} threads"
        detail = f"real-time factor {mine['rtf']:.3g}, teacher {theirs['rtf']:.3g}, {threads}"
        tiles.append(Tile("Speed", times(faster, "faster", "slower"), detail, f"{PUBLISHED['faster']}× faster"))
    sentence = f"{times(smaller, 'smaller', 'larger')} and {'streaming ' if row['latency_ms'] else ''}{where}: "
    sentence += f"{wer} of the {words} wrong, where the teacher has {teacher['wer']:.2f} %"
    wrong, wrong_teacher = (r["sub"] + r["del"] + r["ins"] for r in (row, teacher))
    sure = f"{wrong:,} errors in {row['words']:,} {words} against {wrong_teacher:,}"
    p = row.get("p_value")
    if p is not None:
        sure += ", a significant difference" if p < SIGNIFICANT else ", no significant difference"
        sure += f" (p {'< 0.001' if p < 0.001 else f'= {p:.2g}'})"
    return sentence, sure + ".", tiles


def millions(count: int) -> str:
    """``0.34 M``."""
    return f"{count / 1e6:.3g} M"


class TableRow(NamedTuple):
    """A line of the headline table; ``cells`` are WER with its interval, and relative loss, by test set."""

    style: str
    system: str
    latency: str
    decoder: str
    size: str
    faster: str
    cells: list[tuple[str, str, str]]
    main: bool


def result_table(rows: Sequence[Row], main: Row, speeds: Speeds) -> tuple[list[str], list[TableRow]]:
    """Test sets, and a line for every system, latency and decoder."""
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    lines: dict[tuple, list[Row]] = {}
    for row in rows:
        lines.setdefault((row["system"], row["latency_ms"], row["decoder"]), []).append(row)
    table = []
    for (system, latency_ms, decoder), mine in lines.items():
        by_set = {row["test_set"]: row for row in mine}
        cells = []
        for test_set in test_sets:
            if test_set not in by_set:
                cells.append(("–", "", ""))
                continue
            row = by_set[test_set]
            loss = row.get("relative_loss")
            span = interval(row["wer_low"], row["wer_high"])
            cells.append((f"{row['wer']:.2f}", span, "" if loss is None else signed(loss)))
        first = mine[0]
        teacher = teacher_of(rows, first)
        faster = None if teacher is None else speeds.faster(first, teacher)
        table.append(
            TableRow(
                style_of(system),
                system_name(system),
                latency_name(latency_ms),
                decoder,
                millions(first["params"]),
                "–" if faster is None else f"{faster:.2g}×",
                cells,
                (system, latency_ms, decoder) == (main["system"], main["latency_ms"], main["decoder"]),
            )
        )
    return test_sets, table


def latency_plot(rows: Sequence[Row], test_set: str) -> Plot | None:
    """WER against chunk length, with 95 % intervals, beside the teacher's and the full-context student's."""
    mine = [row for row in rows if row["test_set"] == test_set]
    streams = [row for row in mine if row["system"] == "student_stream" or row["system"].startswith(FIXED)]
    if not streams:
        return None
    decoders = list(dict.fromkeys(row["decoder"] for row in streams))
    latencies = sorted({row["latency_ms"] for row in streams}, key=lambda latency: latency or math.inf)
    flat = [row for row in mine if row["system"] in ("teacher", "student_full") and row["decoder"] in decoders[:1]]
    top = max([row["wer_high"] for row in streams] + [row["wer"] for row in flat])
    plot = Plot(
        title=f"{streams[0]['unit'].upper()} against latency, {test_set}",
        description="",
        width=400,
        height=270,
        left=48,
        right=392,
        top=14,
        bottom=222,
        x_label="chunk length",
        y_label=f"{streams[0]['unit'].upper()} %",
        x_ticks=[],
        y_ticks=[],
    )
    y = Scale(0, 1.08 * top or 1, plot.bottom, plot.top)
    step = (plot.right - plot.left) / len(latencies)
    places = {latency: round(plot.left + step * (index + 0.5), 1) for index, latency in enumerate(latencies)}
    plot.x_ticks = [Tick(places[latency], latency_name(latency)) for latency in latencies]
    plot.y_ticks = y.ticks()
    for row in flat:
        which = f", {row['decoder']}" if len(decoders) > 1 else ""
        line = Line(f"{system_name(row['system'])}{which}: {row['wer']:.2f} %", style_of(row["system"]) + " dashed")
        line.path = f"M{plot.left:g} {y(row['wer']):g} L{plot.right:g} {y(row['wer']):g}"
        plot.lines.append(line)
    told = [f"{system_name(row['system'])} {row['wer']:.2f} %" for row in flat]
    groups = [("student_stream", decoder) for decoder in decoders]
    groups += [("fixed", decoders[0])] if any(row["system"] != "student_stream" for row in streams) else []
    for number_of, (group, decoder) in enumerate(groups):
        points = [row for row in streams if row["decoder"] == decoder]
        points = [row for row in points if (row["system"] == "student_stream") == (group == "student_stream")]
        shift = 9 * (number_of - (len(groups) - 1) / 2)
        name = "streaming student" if group == "student_stream" else "a student for each chunk length"
        if len(decoders) > 1 and group == "student_stream":
            name += f", {decoder}"
        style = "fixed" if group == "fixed" else "stream" if decoder == decoders[0] else decoder
        line = Line(name, style)
        for row in sorted(points, key=lambda row: row["latency_ms"] or math.inf):
            span = interval(row["wer_low"], row["wer_high"])
            said = f"{name}, {latency_name(row['latency_ms'])}: {row['wer']:.2f} % ({span})"
            told.append(said)
            x = places[row["latency_ms"]] + shift
            line.marks.append(Mark(x, y(row["wer"]), 4.5, said, y(row["wer_low"]), y(row["wer_high"])))
        line.path = polyline(line.marks)
        plot.lines.append(line)
    plot.description = "; ".join(told)
    return plot


def bubble_plot(rows: Sequence[Row], main: Row, speeds: Speeds) -> Plot | None:
    """Errors against speed on the main row's test set, areas in proportion to size; the paper's claim as a box.

    Exported models are there at the main row's latency, with the errors of torch.
    """
    decoder, test_set = main["decoder"], main["test_set"]
    mine = [row for row in rows if row["test_set"] == test_set and row["decoder"] == decoder]
    teacher = next((row for row in mine if row["system"] == "teacher"), None)
    if teacher is None:
        return None
    points = []
    for row in mine:
        faster = 1.0 if row is teacher else speeds.faster(row, teacher)
        if faster is not None and row["wer"] > 0:
            points.append((row, faster, row["model_bytes"], ""))
    rtf = speeds.row(teacher).get("rtf")
    for other in speeds.rows:
        same = (other["system"], other["latency_ms"]) == (main["system"], main["latency_ms"])
        if other["runtime"] != "torch" and same and rtf and other["rtf"] and main["wer"] > 0:
            runtime = other["runtime"].replace("onnxruntime", "ONNX")
            points.append((main, rtf / other["rtf"], other["model_bytes"], runtime))
    if len(points) < 2 or teacher["wer"] <= 0:
        return None
    plot = Plot(
        title=f"Size, speed and {teacher['unit'].upper()}",
        description="",
        width=400,
        height=310,
        left=48,
        right=392,
        top=14,
        bottom=262,
        x_label="times as fast as the teacher",
        y_label=f"{teacher['unit'].upper()} %",
        x_ticks=[],
        y_ticks=[],
    )
    claimed = [teacher["wer"] * (1 + loss / 100) for loss in PAPER_LOSS]
    speeds_shown = [faster for _, faster, _, _ in points] + [PUBLISHED["faster"]]
    wers = [row["wer"] for row, *_ in points] + claimed
    x = Scale(min(speeds_shown) / 1.6, max(speeds_shown) * 1.8, plot.left, plot.right, log=True)
    y = Scale(min(wers) / 1.2, max(wers) * 1.2, plot.bottom - LARGEST, plot.top + LARGEST, log=True)
    plot.x_ticks = [Tick(tick.at, f"{tick.label}×") for tick in x.ticks(7)]
    plot.y_ticks = y.ticks(7)
    biggest = max(size for _, _, size, _ in points)
    lines: dict[str, Line] = {}
    for row, faster, size, runtime in points:
        name = system_name("student_stream_fixed" if row["system"].startswith(FIXED) else row["system"])
        if row["system"].startswith(FIXED):
            name = "a student for each chunk length"
        line = lines.setdefault(name, Line(name, style_of(row["system"])))
        latency = latency_name(row["latency_ms"])
        said = f"{name}, {latency}{runtime and ', ' + runtime}: {number(faster)}× as fast, {size / 1e6:.3g} MB, "
        said += f"{row['unit'].upper()} {row['wer']:.2f} %"
        mark = Mark(x(faster), y(row["wer"]), round(max(4.0, LARGEST * math.sqrt(size / biggest)), 1), said)
        if row["system"] == "student_stream":
            mark.label = runtime or latency
            mark.label_y = round(mark.y - mark.radius - 4, 1)
        line.marks.append(mark)
    plot.lines = list(lines.values())
    separate_labels([mark for line in plot.lines for mark in line.marks if mark.label])
    side = 2 * max(4.0, LARGEST / math.sqrt(PUBLISHED["smaller"]))
    low, high = y(claimed[0]), y(claimed[1])
    plot.box = (x(PUBLISHED["faster"]) - side / 2, min(high, low), side, max(3.0, abs(low - high)))
    plot.box_label = f"published: {PUBLISHED['faster']}× faster, {PUBLISHED['smaller']}× smaller"
    told = [mark.title for line in plot.lines for mark in line.marks]
    plot.description = "; ".join([*told, f"{plot.box_label}, +{PAPER_LOSS[0]:g} to +{PAPER_LOSS[1]:g} % relative loss"])
    return plot


def loss_plots(curves: Curves) -> list[Plot]:
    """A small plot for each term of a training's loss: over the epochs, of training and of validation."""
    plots = []
    for term, parts in curves.items():
        values = [value for part in parts.values() for _, value in part if math.isfinite(value)]
        epochs = [epoch for part in parts.values() for epoch, _ in part]
        if not values:
            continue
        plot = Plot(
            title=TERMS[term],
            description="",
            width=200,
            height=140,
            left=44,
            right=194,
            top=10,
            bottom=112,
            x_label="epoch",
            y_label="",
            x_ticks=[],
            y_ticks=[],
        )
        log = min(values) > 0 and max(values) > 10 * min(values)
        x = Scale(min(epochs), max(epochs), plot.left, plot.right)
        slack = 0.05 * (max(values) - min(values))
        y = Scale(min(values) - (0 if log else slack), max(values) + slack, plot.bottom, plot.top, log)
        plot.x_ticks = [tick for tick in x.ticks(4) if float(tick.label.replace(",", "")).is_integer()]
        plot.y_ticks = y.ticks(4)
        told = []
        for part, points in parts.items():
            good = [(epoch, value) for epoch, value in points if math.isfinite(value)]
            if good:
                marks = [Mark(x(epoch), y(value), 0, f"{part}, epoch {epoch}: {value:.4g}") for epoch, value in good]
                shown = marks if len(marks) == 1 else []  # a line of one point would not be seen
                plot.lines.append(Line(part, part, shown, polyline(marks)))
                told.append(f"{part}: from {good[0][1]:.4g} to {good[-1][1]:.4g} in {len(good)} epochs")
        plot.description = f"{TERMS[term]}, {'; '.join(told)}"
        plots.append(plot)
    return plots


class Exported(NamedTuple):
    """A model of an export, as parity.json tells of it."""

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
                    latency_name(report["chunk_ms"]),
                    row["bytes"] / 1e6,
                    row.get("ms_per_chunk"),
                    f"{row['identical_texts']:,} of {row['utterances']:,}",
                    f"{row['word_errors']:,} of {row['words']:,}",
                    row["max_log_prob_difference"],
                    "int8" not in kind or report.get("int8_offered", True),
                )
            )
    return rows
