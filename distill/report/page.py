"""The report page of an experiment: one HTML file that needs no other. What the experiment lacks is left out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp
from distill.checkpoints.load import read_config
from distill.errors import UserError
from distill.files import atomic_write, yaml_text
from distill.pack.contents import public_config, read_json
from distill.report import charts, figures
from distill.report.history import read_history
from distill.report.worst_utterances import Utterance, worst_utterances
from distill.scoring.results import find_systems
from distill.scoring.tables import format_latency, in_one_unit
from distill.scoring.text import read_hypotheses

if TYPE_CHECKING:
    from distill.report.alignment import Alignment

HERE = Path(__file__).parent
MOST_AUDIO_S = 120.0  # in the page, from the worst utterance on
MOST_COMPARED_S = 60.0  # of audio, for the similarity of layers


class Training(NamedTuple):
    """A trained system: its configuration, in short (``facts``) and whole, and the plots of its losses."""

    system: str
    name: str
    style: str
    facts: list[tuple[str, str]]
    config: str
    losses: list[Any]


class Similarity(NamedTuple):
    """CKA of a student's layers (rows) with the teacher's (columns); ``compared``: the pairs compared in training."""

    name: str
    values: list[list[float]]
    compared: set[tuple[int, int]]


def note(missing: str) -> None:
    """Print on stderr what the page leaves out."""
    print(f"report: {missing}", file=sys.stderr)


def trained(expdir: Path) -> list[str]:
    """Names of the trained systems, in the order of the results."""
    return [name for name in find_systems(expdir) if (expdir / name / "config.yaml").is_file()]


def trainings(expdir: Path) -> list[Training]:
    """Configuration and losses of every system."""
    rows = []
    for system in trained(expdir):
        config = read_config(expdir / system)
        shown = {key: value for key, value in public_config(config).items() if key != "token_list"}
        text = yaml_text(shown, width=100)
        name, style = figures.system_name(system), figures.style_of(system)
        curves = charts.loss_plots(read_history(expdir / system))
        rows.append(Training(system, name, style, facts(config), text, curves))
    return rows


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The most important settings of a training, by name."""
    network, loss = config.get("network_conf") or {}, config.get("distill_conf") or {}
    chunk, optim = config.get("chunk_conf") or {}, config.get("optim_conf") or {}
    encoder = network.get("config") if isinstance(network.get("config"), Mapping) else {}
    layers = network.get("layers") or (encoder or {}).get("num_hidden_layers", "")
    width = network.get("width") or (encoder or {}).get("hidden_size", "")
    with_teacher = bool(config.get("teacher"))
    rows = [
        ("network", f"{layers} layers of width {width}" if layers and width else str(config.get("network", ""))),
        ("front end", network.get("front_end", "cnn") if config.get("network") == "student" else ""),
        ("tokens", f"{len(config.get('token_list') or [])} ({config.get('token_type')})"),
        ("learns from", Path(config["teacher"]).name if with_teacher else "the transcripts"),
        ("LF-MMI target", loss.get("target", "")),
        ("α, β", f"{loss.get('alpha', 0.8)}, {loss.get('beta', 0.8)}" if with_teacher else ""),
        ("CTC weight", str(loss.get("weight_ctc", ""))),
        ("chunks", f"{chunk.get('chunk_ms')} ms, history {chunk.get('left_ms')} ms" if chunk else ""),
        ("learning rate", str(optim.get("lr", ""))),
        ("epochs", str(config.get("max_epoch", ""))),
    ]
    return [(name, str(value)) for name, value in rows if value != ""]


def similarities(expdir: Path, valid_dir: Path, num_utts: int, chunk_ms: int | None) -> list[Similarity]:
    """CKA of both students' layers with the teacher's, on the first ``num_utts`` validation utterances."""
    from distill.report.similarity import compared_layers, layer_similarity

    students = [system for system in ("student_full", "student_stream") if system in trained(expdir)]
    if num_utts < 1 or not students or "teacher" not in trained(expdir):
        return []
    try:
        paths = list(read_wav_scp(valid_dir / "wav.scp").values())[:num_utts]
        utterances, seconds = [], 0.0
        for path in paths:
            audio = read_audio(path)
            if seconds + len(audio) / SAMPLE_RATE <= MOST_COMPARED_S:
                utterances.append(audio)
                seconds += len(audio) / SAMPLE_RATE
        similarity = []
        for system in students:
            values = layer_similarity(expdir / system, expdir / "teacher", utterances, chunk_ms)
            layers = compared_layers(read_config(expdir / system), len(values), len(values[0]))
            compared = {(row, layer - 1) for row, layer in enumerate(layers)}
            similarity.append(Similarity(figures.system_name(system), values, compared))
        return similarity
    except UserError as error:
        note(f"similarity of layers is left out: {error}")
        return []


def beside(expdir: Path, main: figures.Row) -> dict[str, Sequence[figures.Row]]:
    """Rows of the results of this experiment and of those in directories beside it, by name of the directory.

    Experiments whose results are of another test set than the main row's are left out.
    """
    found: dict[str, Sequence[figures.Row]] = {}
    for path in sorted(expdir.absolute().parent.glob("*/results.json")):
        rows = in_one_unit(read_json(path).get("rows") or [])
        of_set = {(row["utterances"], row["words"]) for row in rows if row["test_set"] == main["test_set"]}
        if of_set == {(main["utterances"], main["words"])}:
            found[path.parent.name] = rows
        elif of_set:
            note(f"{path.parent.name} is left out of the sizes: its {main['test_set']} has other utterances")
    return found


def drawn_alignments(
    expdir: Path, decode_dir: Path, main: figures.Row, wav_scp: Path, first: str | None, count: int
) -> list[Alignment]:
    """Utterances of the main row's system and test set with the times of their tokens, see :mod:`.alignment`."""
    from distill.report.alignment import alignments, chosen

    if count < 1 or main["system"] not in trained(expdir) or not decode_dir.is_dir():
        return []
    try:
        paths = read_wav_scp(wav_scp)
        seconds = {name: row["audio_s"] for name, row in read_hypotheses(decode_dir).items() if name in paths}
        names = chosen(seconds, first, count)
        teacher = expdir / "teacher" if "teacher" in trained(expdir) else None
        return alignments(expdir / main["system"], teacher, main["latency_ms"], {name: paths[name] for name in names})
    except UserError as error:
        note(f"alignments are left out: {error}")
        return []


def render(expdir: Path, data: Path, valid_set: str, num_errors: int, num_utts: int, num_alignments: int) -> str:
    """The page of an experiment.

    Args:
        expdir: holds results.json (stage 13), and may hold trainings, bench.json, export and decode directories.
        data: holds SET/wav.scp and SET/text, such as dump/raw.
        valid_set: the set whose first ``num_utts`` utterances serve to compare layers.
        num_errors: number of utterances with errors to show.
        num_utts: number of utterances to compare layers on; 0 leaves the comparison out.
        num_alignments: number of utterances whose tokens are shown over the spectrogram.
    """
    results = read_json(expdir / "results.json")
    rows = in_one_unit(results.get("rows") or [])
    if not rows:
        raise UserError(f"{expdir / 'results.json'}: has no results; run stages 12 and 13")
    bench = read_json(expdir / "bench.json") if (expdir / "bench.json").is_file() else {}
    parity_file = expdir / "export" / "parity.json"
    parity = read_json(parity_file) if parity_file.is_file() else {}
    main, speeds = figures.main_row(rows), figures.Speeds(bench)
    sentence, significance, tiles = figures.headline(rows, main, speeds)
    test_sets, table = figures.result_table(rows, main, speeds)
    latency_plots = [plot for name in test_sets if (plot := charts.latency_plot(rows, name))]
    folder = "decode_full" if main["latency_ms"] is None else f"decode_{main['latency_ms']}ms"
    suffix = "" if main["decoder"] == "greedy" else f"_{main['decoder']}"
    decode_dir = expdir / main["system"] / (folder + suffix) / main["test_set"]
    teacher_dir = expdir / "teacher" / f"decode_full{suffix}" / main["test_set"]
    worst: list[Utterance] = []
    confusions: list[tuple[str, str, int]] = []
    wav_scp = data / main["test_set"] / "wav.scp"
    if (decode_dir / f"score_{main['unit']}" / "ref.trn").is_file():
        worst, confusions = worst_utterances(decode_dir, teacher_dir, wav_scp, main["unit"], num_errors, MOST_AUDIO_S)
    else:
        note(f"errors are left out: {decode_dir} is not there, or not scored")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        latency_name=format_latency, system_name=figures.system_name, computed_on=figures.computed_on
    )
    return environment.get_template("page.html").render(
        recipe=results.get("recipe", expdir.name),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        sentence=sentence,
        significance=significance,
        tiles=tiles,
        test_sets=test_sets,
        sizes={row["test_set"]: (row["utterances"], row["words"]) for row in rows},
        table=table,
        decoders={row["decoder"] for row in rows},
        main=main,
        units=figures.UNITS[main["unit"]],
        measured=speeds.measured,
        measured_exports=any(row["runtime"] != "torch" for row in speeds.rows),
        latency_plots=latency_plots,
        bubbles=charts.bubble_plot(rows, main, speeds),
        by_size=charts.size_plot(beside(expdir, main), main),
        delays=bench.get("latency") or [],
        exports=figures.export_rows(parity),
        trainings=trainings(expdir),
        similarities=similarities(expdir, data / valid_set, num_utts, main["latency_ms"]),
        alignments=drawn_alignments(
            expdir, decode_dir, main, wav_scp, worst[0].name if worst else None, num_alignments
        ),
        worst=worst,
        confusions=confusions,
        environment=results.get("environment") or {},
    )


def write_report(
    expdir: Path,
    data: Path,
    valid_set: str,
    num_errors: int,
    num_utts: int,
    num_alignments: int,
    output: Path | None,
) -> None:
    """Write the page of an experiment to ``output`` (None: EXPDIR/report/index.html); see :func:`render`."""
    path = output or expdir / "report" / "index.html"
    page = render(expdir, data, valid_set, num_errors, num_utts, num_alignments)
    with atomic_write(path) as stream:
        stream.write(page)
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB")
