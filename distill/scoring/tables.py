"""RESULTS.md: the tables of results.json, beside the paper's figures and in the form of ESPnet's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distill.configuration import Float, Int, Positive, checked
from distill.errors import UserError, printable

FIXED = "student_stream_fixed"  # followed by the chunk in ms: students trained for that chunk length alone
MOST_SPEAKERS = 20  # in a table
# The abstract of the paper (arXiv 2303.09278), student against teacher: relative loss in per cent, and factors
PUBLISHED = {"latency_ms": 480, "relative_loss_low": 9.0, "relative_loss_high": 23.4, "smaller": 12, "faster": 8}
TOO_MANY_ERRORS = 90.0  # % from which comparing a system means nothing: one that has learned nothing has 95 to 100

Row = dict[str, Any]
Score = TypedDict("Score", {"sub": Int, "del": Int, "ins": Int, "units": Int, "err": Float})
MARKDOWN = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", **{mark: f"\\{mark}" for mark in "\\`*|[]"}})


class ResultRow(TypedDict):
    """What a model card uses of a row of results.json; a row has more."""

    system: str
    test_set: str
    decoder: str
    latency_ms: Int | None
    wer: Float | None
    params: Positive
    scores: NotRequired[dict[str, Score]]
    relative_loss: NotRequired[Float | None]
    wer_low: NotRequired[Float | None]
    wer_high: NotRequired[Float | None]
    ter_low: NotRequired[Float | None]
    ter_high: NotRequired[Float | None]


class Results(TypedDict):
    """Contents of results.json."""

    recipe: str
    rows: list[ResultRow]


def check_results(results: dict[str, Any], path: Path) -> None:
    """Check what is used of the content of results.json.

    Raises:
        UserError: something is missing, or of another type.
    """
    try:
        checked(Results, "", results)
        rows = results["rows"]
        in_tokens = all(row["wer"] is None for row in rows)
        if in_tokens and not all(
            "ter" in row.get("scores", {}) and {"ter_low", "ter_high"} <= row.keys() for row in rows
        ):
            raise UserError("rows: one is scored neither in words nor in tokens")
    except UserError as error:
        raise UserError(f"{path}: not the results of an experiment: {error}; run stage 13 again") from None


def literal(value: Any) -> Any:
    """Texts within results, such as names of speakers, so that Markdown and a terminal show them as they are."""
    if isinstance(value, str):
        return printable(value).translate(MARKDOWN)
    if isinstance(value, Mapping):
        return {literal(key): literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list) else value


def code(value: object) -> str:
    """A value in Markdown's code."""
    return f"`{printable(str(value)).replace('`', chr(39))}`"


def results_page(results: dict[str, Any]) -> str:
    """Text of RESULTS.md from the content of results.json."""
    rows = literal(results["rows"])
    lines = [f"# Results of {literal(results['recipe'])}", ""]
    lines += [f"- {literal(name)}: {code(value)}" for name, value in results["environment"].items()]
    lines += ["", introduction(rows)]
    lines += [line for warning in warnings(rows) for line in ("", f"**Warning:** {warning}")]
    if word_rows := [row for row in rows if row["wer"] is not None]:
        lines += ["", "## Beside the paper", "", "WER % (relative loss %) of each test set.", ""]
        lines += paper_table(word_rows)
        lines += [
            "",
            "*published*: the abstract of DistillW2V2 (arXiv 2303.09278) on its own teacher and student, over its test "
            "sets of GigaSpeech, LibriSpeech and an in-house corpus. A question mark stands for what it does not say.",
        ]
    for test_set in dict.fromkeys(row["test_set"] for row in rows):
        set_rows = [row for row in rows if row["test_set"] == test_set]
        words = next((row["words"] for row in set_rows if row["wer"] is not None), None)
        size = f"{set_rows[0]['utterances']} utterances" + ("" if words is None else f", {words} words")
        lines += ["", f"## {test_set} ({size})"]
        for unit in ("wer", "ter"):
            if unit_rows := [row for row in set_rows if (row["wer"] is None) == (unit == "ter")]:
                lines += ["", *comparison_table(unit_rows, unit), *speaker_table(unit_rows)]
    lines += ["", *espnet_tables(rows)]
    return "\n".join(lines) + "\n"


def introduction(rows: list[Row]) -> str:
    """How the systems were decoded and scored, and what the columns mean."""
    text = "Greedy decoding."
    if with_lm := [row for row in rows if row["decoder"] != "greedy"]:
        text = (
            "Decoders: greedy; beam, CTC prefix beam search; wfst, a graph of tokens, lexicon and n-gram. Their "
            f"n-gram is {code(with_lm[0].get('lm'))}; its weight and the bonus per word were chosen on the validation "
            "set (`tuned.json` of each system). A system is compared with the teacher of the same decoder."
        )
    if any(row.get("scoring") == "gigaspeech" for row in rows):
        text += " Scored as GigaSpeech is: hyphens split, fillers (UH, UM ...) and tags not counted."
    return (
        f"{text} The latency of a streaming student is its chunk with its look-ahead: the longest that a frame waits. "
        "Relative loss, size (float32 bytes) and speed are against the teacher with full context. Utterances were "
        "recognised in batches, with a streaming student's chunks; speed is the real-time factor (RTF) of a sample of "
        f"{max(row['rtf_utterances'] for row in rows)} utterances of a set, which were also recognised one at a time, "
        f"in a stream where a student streams, {' and '.join(dict.fromkeys(map(computed_on, rows)))}, beside other "
        "jobs. Intervals: paired bootstrap over utterances. p: matched-pairs test of as many errors as the teacher's. "
        "Plots, alignments and the worst utterances with their audio are in `report/index.html`, which stage 16 writes."
    )


def computed_on(row: Mapping[str, Any]) -> str:
    """``on 1 CPU thread``, or on which GPU."""
    if row.get("device", "cpu") != "cpu":
        return f"on {row['device']}"
    return f"on {row['threads']} CPU thread{'' if row['threads'] == 1 else 's'}"


def times_faster(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float | None:
    """How many times faster systems are than teachers, by (system's row, teacher's row) of each test set.

    None if one was not timed, or the two on different devices.
    """
    if not pairs or any(not row.get("rtf") for pair in pairs for row in pair):
        return None
    if any(row.get(key) != teacher.get(key) for row, teacher in pairs for key in ("device", "threads")):
        return None
    system_s, teacher_s = (sum(row["rtf"] * row["audio_s"] for row in side) for side in zip(*pairs, strict=True))
    return teacher_s / system_s


def format_times(factor: float | None) -> str:
    """``7.3x``; a dash for None."""
    return "-" if factor is None else f"{factor:.1f}x"


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a system recognises enough to be compared: at most ``TOO_MANY_ERRORS`` per cent of its units wrong."""
    rate = row["wer"] if row["wer"] is not None else row["scores"]["ter"]["err"]
    return rate <= TOO_MANY_ERRORS


def warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for every test set with systems that recognise too little for any conclusion."""
    lines = []
    for test_set in dict.fromkeys(row["test_set"] for row in rows):
        poor = [row for row in rows if row["test_set"] == test_set and not recognises(row)]
        if not poor:
            continue
        names = ", ".join(dict.fromkeys(system_label(row) for row in poor))
        cure = (
            "train the teacher longer, or take another"
            if any(row["system"] == "teacher" for row in poor)
            else ("look at the curves of their trainings")
        )
        lines.append(
            f"on {test_set} more than {TOO_MANY_ERRORS:g} % is wrong of {names}; they are not compared. Before "
            f"anything else {cure}."
        )
    return lines


def format_interval(low: float | None, high: float | None) -> str:
    """``low..high`` to one decimal place; None is an infinite end."""
    return f"{'−∞' if low is None else f'{low:.1f}'}..{'∞' if high is None else f'{high:.1f}'}"


def format_latency(latency_ms: int | None) -> str:
    """``480 ms``, or ``full`` for full context."""
    return "full" if latency_ms is None else f"{latency_ms} ms"


def teachers_of(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The teacher's row by test set and decoder."""
    return {(row["test_set"], row["decoder"]): row for row in rows if row["system"] == "teacher"}


def in_one_unit(rows: list[Row]) -> list[Row]:
    """The rows that are scored in words; if none is, all rows with the scores of their tokens in the same fields.

    The field ``unit`` of each row says which: ``wer`` or ``ter``.
    """
    word_rows = [{**row, "unit": "wer"} for row in rows if row["wer"] is not None]
    if word_rows:
        return word_rows
    token_rows = []
    for row in rows:
        score = row["scores"]["ter"]
        counts = {name: score[name] for name in ("sub", "del", "ins")}
        ends = {"wer_low": row["ter_low"], "wer_high": row["ter_high"]}
        token_rows.append({**row, **counts, **ends, "wer": score["err"], "words": score["units"], "unit": "ter"})
    return token_rows


def markdown_table(names: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def paper_table(rows: list[Row]) -> list[str]:
    """Each system's WER and relative loss by test set, its size and speed, with a line of the paper's figures."""
    sets = list(dict.fromkeys(row["test_set"] for row in rows))
    several_decoders = {row["decoder"] for row in rows} != {"greedy"}
    names = ["system", "latency", *(["decoder"] if several_decoders else []), *sets]
    names += ["params", "MB", "smaller", "faster"]
    published = ["*published*", f"{PUBLISHED['latency_ms']} ms", *(["?"] if several_decoders else [])]
    published += [f"(+{PUBLISHED['relative_loss_low']:g} to +{PUBLISHED['relative_loss_high']:g})"] * len(sets)
    published += ["?", "?", f"{PUBLISHED['smaller']}x", f"{PUBLISHED['faster']}x"]
    teachers = teachers_of(rows)
    systems: dict[tuple[str, int | None, str], list[Row]] = {}
    for row in rows:
        systems.setdefault((row["system"], row["latency_ms"], row["decoder"]), []).append(row)
    table, place = [], None
    for (system, latency_ms, decoder), system_rows in systems.items():
        by_set = {row["test_set"]: row for row in system_rows}
        cells = [system, format_latency(latency_ms), *([decoder] if several_decoders else [])]
        cells += [rate_and_loss(by_set.get(test_set), teachers) for test_set in sets]
        cells += [f"{system_rows[0]['params'] / 1e6:.2f} M", f"{system_rows[0]['model_bytes'] / 1e6:.1f}"]
        cells += size_and_speed(system_rows, teachers)
        table.append(cells)
        if (system, latency_ms) == ("student_stream", PUBLISHED["latency_ms"]):
            place = len(table)  # behind the last decoder of the same setting
    table.insert(len(table) if place is None else place, published)
    return markdown_table(names, table)


def rate_and_loss(row: Row | None, teachers: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """``20.00 (+100.0)``: error rate and relative loss in per cent; a dash for no row."""
    if row is None:
        return "-"
    teacher = teachers.get((row["test_set"], row["decoder"]), row)
    compared = recognises(row) and recognises(teacher)
    loss = row.get("relative_loss")
    return f"{row['wer']:.2f}" + ("" if loss is None or not compared else f" ({loss:+.1f})")


def size_and_speed(rows: list[Row], teachers: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """How many times smaller and faster than the teacher a system is, over the test sets that both recognised."""
    keys = [(row["test_set"], row["decoder"]) for row in rows]
    pairs = [(row, teachers[key]) for row, key in zip(rows, keys, strict=True) if key in teachers]
    if not pairs:
        return ["-", "-"]
    return [f"{pairs[0][1]['model_bytes'] / rows[0]['model_bytes']:.1f}x", format_times(times_faster(pairs))]


def comparison_table(rows: list[Row], unit: str) -> list[str]:
    """One test set: each system's error rate (``unit`` wer or ter), relative loss, size and speed."""
    rate = f"{unit.upper()} % (95 %)"
    names = ["system", "latency", rate, "sub/del/ins", "relative loss % (95 %)", "p", "params", "smaller"]
    names += ["RTF", "faster"]
    if {row["decoder"] for row in rows} != {"greedy"}:
        names.insert(2, "decoder")
    teachers = teachers_of(rows)
    table = []
    for row in rows:
        teacher = teachers.get((row["test_set"], row["decoder"]))
        loss, p = "-", row.get("p_value")
        if not recognises(row) or (teacher and not recognises(teacher)):
            p = None
        elif row.get("relative_loss") is not None:
            loss = f"{row['relative_loss']:+.1f} ({format_interval(row['relative_low'], row['relative_high'])})"
        elif row["system"] != "teacher" and teacher:
            loss = "teacher has no error"
        scores = row["scores"][unit]
        cells = {
            "system": row["system"],
            "latency": format_latency(row["latency_ms"]),
            "decoder": row["decoder"],
            rate: f"{scores['err']:.2f} ({format_interval(row[f'{unit}_low'], row[f'{unit}_high'])})",
            "sub/del/ins": f"{scores['sub']}/{scores['del']}/{scores['ins']}",
            "relative loss % (95 %)": loss,
            "p": "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
            "params": f"{row['params'] / 1e6:.2f} M",
            "smaller": f"{teacher['model_bytes'] / row['model_bytes']:.1f}x" if teacher else "-",
            "RTF": "-" if row["rtf"] is None else f"{row['rtf']:.4f}",
            "faster": format_times(times_faster([(row, teacher)]) if teacher else None),
        }
        table.append([cells[name] for name in names])
    return markdown_table(names, table)


def espnet_tables(rows: list[Row]) -> list[str]:
    """Error rates of words, characters and tokens in the form of ESPnet's RESULTS.md, by decode directory."""
    lines = ["## As ESPnet tabulates them"]
    for unit in ("wer", "cer", "ter"):
        unit_rows = [row for row in rows if unit in row["scores"]]
        if unit_rows:
            lines += ["", f"### {unit.upper()}", "", "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|---" * 9 + "|"]
        for row in unit_rows:
            chunk = "full" if row["latency_ms"] is None else f"{row['latency_ms']}ms"
            name = f"decode_{chunk}" + ("" if row["decoder"] == "greedy" else f"_{row['decoder']}")
            scores = row["scores"][unit]
            percent = {kind: 100 * scores[kind] / max(scores["units"], 1) for kind in ("sub", "del", "ins")}
            figures = [100 - percent["sub"] - percent["del"], *percent.values(), scores["err"]]
            figures.append(100 * scores["wrong_utterances"] / scores["utterances"])
            cells = f"{row['system']}/{name}/{row['test_set']}|{scores['utterances']}|{scores['units']}|"
            lines.append(f"|{cells}{'|'.join(f'{figure:.1f}' for figure in figures)}|")
    return lines


def speaker_table(rows: list[Row]) -> list[str]:
    """Error rate of each speaker by system; of many speakers those with the first system's highest rates."""
    rows = [row for row in rows if row.get("speakers")]
    if not rows or len(rows[0]["speakers"]) < 2:
        return []

    def rate(row: Row, speaker: str) -> float:
        words, errors = row["speakers"].get(speaker, (0, 0))
        return 100 * errors / words if words else math.nan

    speakers = sorted(rows[0]["speakers"], key=lambda speaker: -rate(rows[0], speaker))
    title = "By speaker"
    if len(speakers) > MOST_SPEAKERS:
        title += f", the worst {MOST_SPEAKERS} of {len(speakers)}"
        speakers = speakers[:MOST_SPEAKERS]
    table = []
    for speaker in speakers:
        rates = [f"{rate(row, speaker):.1f}" for row in rows]
        table.append([speaker, str(rows[0]["speakers"][speaker][0]), *rates])
    return ["", f"{title}:", "", *markdown_table(["speaker", "words", *map(system_label, rows)], table)]


def system_label(row: Row) -> str:
    """System, latency and decoder in short, for the head of a column."""
    whole = " full" if row["system"].startswith("student_stream") else ""
    latency = whole if row["latency_ms"] is None else f" {row['latency_ms']} ms"
    return row["system"] + latency + ("" if row["decoder"] == "greedy" else f" {row['decoder']}")
