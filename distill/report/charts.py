"""The report's charts: WER against latency, speed and size, and losses over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from distill.report.figures import PAPER_LOSS, Row, Speeds, style_of, system_name
from distill.report.history import TERMS, Curves
from distill.report.plots import Line, Mark, Plot, Scale, Tick, number, polyline, separate_labels
from distill.scoring.tables import FIXED, PUBLISHED, format_interval, format_latency

LARGEST = 20  # px, radius of the largest bubble


def _wide_plot(title: str, height: int, x_label: str, y_label: str) -> Plot:
    """An empty plot of the width of a column of the page."""
    return Plot(title, 400, height, left=48, right=392, top=14, bottom=height - 48, x_label=x_label, y_label=y_label)


def latency_plot(rows: Sequence[Row], test_set: str) -> Plot | None:
    """WER against chunk length with 95 % intervals, beside the WER of the teacher and the full-context student."""
    set_rows = [row for row in rows if row["test_set"] == test_set]
    streams = [row for row in set_rows if row["system"] == "student_stream" or row["system"].startswith(FIXED)]
    if not streams:
        return None
    decoders = list(dict.fromkeys(row["decoder"] for row in streams))
    latencies = sorted({row["latency_ms"] for row in streams}, key=lambda latency: latency or math.inf)
    full_context = [
        row for row in set_rows if row["system"] in ("teacher", "student_full") and row["decoder"] == decoders[0]
    ]
    top = max([row["wer_high"] for row in streams] + [row["wer"] for row in full_context])
    plot = _wide_plot(
        f"{streams[0]['unit'].upper()} against latency, {test_set}",
        270,
        "chunk length",
        f"{streams[0]['unit'].upper()} %",
    )
    y = Scale(0, 1.08 * top or 1, plot.bottom, plot.top)
    step = (plot.right - plot.left) / len(latencies)
    places = {latency: round(plot.left + step * (index + 0.5), 1) for index, latency in enumerate(latencies)}
    plot.x_ticks = [Tick(places[latency], format_latency(latency)) for latency in latencies]
    plot.y_ticks = y.ticks()
    for row in full_context:
        which = f", {row['decoder']}" if len(decoders) > 1 else ""
        line = Line(f"{system_name(row['system'])}{which}: {row['wer']:.2f} %", style_of(row["system"]) + " dashed")
        line.path = f"M{plot.left:g} {y(row['wer']):g} L{plot.right:g} {y(row['wer']):g}"
        plot.lines.append(line)
    descriptions = [f"{system_name(row['system'])} {row['wer']:.2f} %" for row in full_context]
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
            span = format_interval(row["wer_low"], row["wer_high"])
            title = f"{name}, {format_latency(row['latency_ms'])}: {row['wer']:.2f} % ({span})"
            descriptions.append(title)
            x = places[row["latency_ms"]] + shift
            line.marks.append(Mark(x, y(row["wer"]), 4.5, title, y(row["wer_low"]), y(row["wer_high"])))
        line.path = polyline(line.marks)
        plot.lines.append(line)
    plot.description = "; ".join(descriptions)
    return plot


def bubble_plot(rows: Sequence[Row], main: Row, speeds: Speeds) -> Plot | None:
    """WER against speed on the main row's test set, with areas proportional to size; the paper's claim is a box.

    Exported models are drawn at the main row's latency, with the WER of torch.
    """
    decoder, test_set = main["decoder"], main["test_set"]
    set_rows = [row for row in rows if row["test_set"] == test_set and row["decoder"] == decoder]
    teacher = next((row for row in set_rows if row["system"] == "teacher"), None)
    if teacher is None:
        return None
    points = []
    for row in set_rows:
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
    plot = _wide_plot(
        f"Size, speed and {teacher['unit'].upper()}",
        310,
        "times as fast as the teacher",
        f"{teacher['unit'].upper()} %",
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
        latency = format_latency(row["latency_ms"])
        title = f"{name}, {latency}{runtime and ', ' + runtime}: {number(faster)}× as fast, {size / 1e6:.3g} MB, "
        title += f"{row['unit'].upper()} {row['wer']:.2f} %"
        mark = Mark(x(faster), y(row["wer"]), round(max(4.0, LARGEST * math.sqrt(size / biggest)), 1), title)
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
    titles = [mark.title for line in plot.lines for mark in line.marks]
    plot.description = "; ".join(
        [*titles, f"{plot.box_label}, +{PAPER_LOSS[0]:g} to +{PAPER_LOSS[1]:g} % relative loss"]
    )
    return plot


def size_plot(experiments: Mapping[str, Sequence[Row]], main: Row) -> Plot | None:
    """WER against parameters of the systems of several experiments, with 95 % intervals; None with fewer than two.

    Streaming students are shown at the main row's latency; on the main row's test set and decoder.

    Args:
        experiments: rows of the results by experiment.
    """
    kinds = {"teacher": None, "student_full": None, "student_full_no_kd": None, "student_stream": main["latency_ms"]}
    lines: dict[str, Line] = {}
    points = []
    for experiment, rows in experiments.items():
        for row in rows:
            same = (row["test_set"], row["decoder"], row["unit"]) == (main["test_set"], main["decoder"], main["unit"])
            if same and row["latency_ms"] == kinds.get(row["system"], math.nan) and row["wer"] > 0:
                points.append((experiment, row))
    if len({experiment for experiment, row in points if row["system"] != "teacher"}) < 2:
        return None
    plot = _wide_plot(f"{main['unit'].upper()} against size", 310, "parameters, millions", f"{main['unit'].upper()} %")
    systems = {row["system"] for _, row in points}
    labelled = "student_stream" if "student_stream" in systems else "student_full"
    sizes = [row["params"] / 1e6 for _, row in points]
    x = Scale(min(sizes) / 1.5, max(sizes) * 1.5, plot.left, plot.right, log=True)
    lows, highs = [row["wer_low"] or row["wer"] for _, row in points], [row["wer_high"] for _, row in points]
    y = Scale(min(lows) / 1.1, max(highs) * 1.1, plot.bottom, plot.top + LARGEST, log=True)
    plot.x_ticks, plot.y_ticks = x.ticks(6), y.ticks(7)
    for experiment, row in points:
        name = system_name(row["system"])
        line = lines.setdefault(name, Line(name, style_of(row["system"])))
        size = row["params"] / 1e6
        title = f"{experiment}, {name}, {format_latency(row['latency_ms'])}: {size:.3g} M parameters, "
        title += f"{row['wer']:.2f} % ({format_interval(row['wer_low'], row['wer_high'])})"
        mark = Mark(x(size), y(row["wer"]), 4.5, title, y(row["wer_low"] or row["wer"]), y(row["wer_high"]))
        if row["system"] == labelled:
            mark.label, mark.label_y = experiment, round(mark.y - 9, 1)
        line.marks.append(mark)
    plot.lines = list(lines.values())
    separate_labels([mark for line in plot.lines for mark in line.marks if mark.label])
    plot.description = "; ".join(mark.title for line in plot.lines for mark in line.marks)
    return plot


def loss_plots(curves: Curves) -> list[Plot]:
    """A small plot for each term of a training's loss over the epochs, in training and validation."""
    plots = []
    for term, parts in curves.items():
        values = [value for part in parts.values() for _, value in part if math.isfinite(value)]
        epochs = [epoch for part in parts.values() for epoch, _ in part]
        if not values:
            continue
        plot = Plot(
            title=TERMS[term],
            width=200,
            height=140,
            left=44,
            right=194,
            top=10,
            bottom=112,
            x_label="epoch",
        )
        log = min(values) > 0 and max(values) > 10 * min(values)
        x = Scale(min(epochs), max(epochs), plot.left, plot.right)
        slack = 0.05 * (max(values) - min(values))
        y = Scale(min(values) - (0 if log else slack), max(values) + slack, plot.bottom, plot.top, log)
        plot.x_ticks = [tick for tick in x.ticks(4) if float(tick.label.replace(",", "")).is_integer()]
        plot.y_ticks = y.ticks(4)
        descriptions = []
        for part, points in parts.items():
            finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
            if finite:
                marks = [Mark(x(epoch), y(value), 0, f"{part}, epoch {epoch}: {value:.4g}") for epoch, value in finite]
                shown = marks if len(marks) == 1 else []  # a line of one point would be invisible
                plot.lines.append(Line(part, part, shown, polyline(marks)))
                descriptions.append(f"{part}: from {finite[0][1]:.4g} to {finite[-1][1]:.4g} in {len(finite)} epochs")
        plot.description = f"{TERMS[term]}, {'; '.join(descriptions)}"
        plots.append(plot)
    return plots
