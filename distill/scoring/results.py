"""Gather every score of an experiment in exp/results.json, and make RESULTS.md from that file and nothing else.

    python -m distill.bin.results --expdir exp --test_sets "test test_unseen" --recipe egs2/fsdd/asr_distill1

The intervals are paired bootstraps over utterances (Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", ICASSP 2004): the same resampled utterances for the system and the teacher. p is of the
matched-pairs test on the differences of the utterances' errors (Gillick & Cox, "Some statistical issues in the
comparison of speech recognition algorithms", ICASSP 1989). A system is compared with the teacher of the same decoder.

A row's ``scores`` count errors in words (wer), characters (cer) and tokens (ter). Where a model of phones is decoded
without a lexicon there are no words: ``wer`` is null, and intervals and relative loss are those of its tokens.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np

from distill.decode.settings import DECODERS
from distill.errors import UserError, cli
from distill.files import atomic_write

SYSTEMS = ("teacher", "student_full", "student_full_no_kd", "student_stream")
FIXED = "student_stream_fixed"  # and the chunk in ms: students trained for that chunk length alone
RESAMPLES = 10_000
MOST_SPEAKERS = 20  # in a table
# All that the paper's abstract says (arXiv 2303.09278): of its student against its teacher, in per cent and times
PUBLISHED = {"latency_ms": 480, "relative_loss_low": 9.0, "relative_loss_high": 23.4, "smaller": 12, "faster": 8}


def bootstrap(errors: np.ndarray, teacher: np.ndarray | None, seed: int = 0) -> dict[str, float | None]:
    """95 % intervals of the WER and of the relative loss against the teacher, both in per cent.

    ``errors`` and ``teacher`` are (utterances, 2): words and errors of each utterance, in the same order. The relative
    loss is 100 * (WER / teacher's WER - 1); it has no value, and its interval no bound, where the teacher's errors in
    the (re)sample are 0.
    """
    draws = np.random.default_rng(seed).multinomial(len(errors), np.full(len(errors), 1 / len(errors)), RESAMPLES)
    sums = draws @ errors
    low, high = np.percentile(100 * sums[:, 1] / np.maximum(sums[:, 0], 1), [2.5, 97.5])
    out: dict[str, float | None] = {"wer_low": low, "wer_high": high}
    if teacher is not None and teacher[:, 1].sum() > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = 100 * (sums[:, 1] / (draws @ teacher[:, 1]) - 1)
        out["relative_loss"] = 100 * (errors[:, 1].sum() / teacher[:, 1].sum() - 1)
        low, high = np.percentile(np.nan_to_num(relative, nan=0.0, posinf=np.inf), [2.5, 97.5], method="lower")
        out["relative_low"] = low if np.isfinite(low) else None
        out["relative_high"] = high if np.isfinite(high) else None
    return out


def matched_pairs(errors: np.ndarray, teacher: np.ndarray) -> float:
    """Two-sided p of the hypothesis that both make as many errors; arrays as in :func:`bootstrap`.

    z = mean(d) / (sd(d) / √n) over the n utterances' differences d of errors, taken as normal: utterances are the
    segments whose errors do not depend on each other.
    """
    differences = errors[:, 1] - teacher[:, 1]
    if len(differences) < 2 or not differences.any():
        return 1.0
    spread = differences.std(ddof=1)
    if spread == 0:
        return 0.0
    return math.erfc(abs(differences.mean()) * math.sqrt(len(differences)) / spread / math.sqrt(2))


def systems_of(expdir: Path) -> list[str]:
    """Names of all systems that an experiment may hold, and of the students for one chunk length that it holds."""
    fixed = sorted((path.name for path in expdir.glob(f"{FIXED}[0-9]*")), key=lambda name: int(name[len(FIXED) :]))
    return [*SYSTEMS, *fixed]


def collect(expdir: Path, test_sets: list[str]) -> list[dict]:
    """A row per system, test set, latency and decoder that has been scored."""
    rows: list[dict] = []
    teacher_errors: dict[tuple[str, str], np.ndarray] = {}
    systems = systems_of(expdir)
    for system in systems:
        for test_set in test_sets:
            for decode_dir in sorted(expdir.glob(f"{system}/decode_*/{test_set}")):
                scores = {}
                for unit in ("wer", "cer", "ter"):
                    score_file = decode_dir / f"score_{unit}" / "score.json"
                    if score_file.is_file():
                        scores[unit] = json.loads(score_file.read_text(encoding="utf-8"))
                if not scores:
                    raise UserError(f"{decode_dir}: decoded but not scored; run stage 13")
                unit = "wer" if "wer" in scores else "ter"
                score = scores[unit]
                about = json.loads((decode_dir / "about.json").read_text(encoding="utf-8"))
                errors = np.array(score["errors"])
                decoder = about.get("decoder", "greedy")
                if system == "teacher":
                    teacher_errors[test_set, decoder] = errors
                row = {
                    "system": system,
                    "test_set": test_set,
                    "latency_ms": about["chunk_ms"],
                    "decoder": decoder,
                    **{key: about[key] for key in ("lm", "lm_weight", "word_bonus") if key in about},
                    **{key: score[key] if unit == "wer" else None for key in ("wer", "sub", "del", "ins", "words")},
                    "utterances": score["utterances"],
                    "scores": {name: summary(name, found) for name, found in scores.items()},
                    **{key: about[key] for key in ("params", "model_bytes", "threads")},
                    "audio_s": score["audio_s"],
                    "rtf": score["compute_s"] / score["audio_s"],
                    "scorer": score["scorer"],
                    "scoring": score.get("scoring", "plain"),
                    "speakers": score.get("speakers", {}),
                }
                against = None if system == "teacher" else teacher_errors.get((test_set, decoder))
                row |= {name.replace("wer", unit): value for name, value in bootstrap(errors, against).items()}
                if against is not None:
                    row["p_value"] = matched_pairs(errors, against)
                rows.append(row)
    if not rows:
        raise UserError(f"{expdir}: no scores there; run stages 12 and 13")
    rows.sort(
        key=lambda row: (
            test_sets.index(row["test_set"]),
            systems.index(row["system"]),
            row["latency_ms"] or math.inf,
            DECODERS.index(row["decoder"]),
        )
    )
    return rows


def summary(unit: str, score: dict) -> dict[str, float]:
    """What a row of results.json holds of a score: counts, and the error rate in per cent."""
    counts = {name: score[name] for name in ("sub", "del", "ins", "utterances", "wrong_utterances")}
    return {"err": score.get(unit, 0.0), "units": score["words"], **counts}


def environment() -> dict[str, str]:
    """Date, machine and versions, as ESPnet's RESULTS.md gives them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in ("espnet", "torch", "transformers")},
        "git commit": commit or "none",
    }


def interval(low: float | None, high: float | None) -> str:
    """``low..high`` to one place; an absent bound has no limit."""
    return f"{'−∞' if low is None else f'{low:.1f}'}..{'∞' if high is None else f'{high:.1f}'}"


def name_of(row: dict) -> str:
    """System, latency and decoder in short."""
    latency = "" if row["latency_ms"] is None else f" {row['latency_ms']} ms"
    return row["system"] + latency + ("" if row["decoder"] == "greedy" else f" {row['decoder']}")


def teachers_of(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """The teacher's row of each test set and decoder."""
    return {(row["test_set"], row["decoder"]): row for row in rows if row["system"] == "teacher"}


def in_one_unit(rows: list[dict]) -> list[dict]:
    """The rows that are scored in words, or, if none is, all of them with the scores of their tokens in those places.

    ``unit`` says which: ``wer`` or ``ter``.
    """
    words = [{**row, "unit": "wer"} for row in rows if row["wer"] is not None]
    if words:
        return words
    in_tokens = []
    for row in rows:
        score = row["scores"]["ter"]
        counts = {name: score[name] for name in ("sub", "del", "ins")}
        interval_of = {"wer_low": row["ter_low"], "wer_high": row["ter_high"]}
        in_tokens.append({**row, **counts, **interval_of, "wer": score["err"], "words": score["units"], "unit": "ter"})
    return in_tokens


def paper_table(rows: list[dict]) -> list[str]:
    """Systems by test sets: WER and relative loss, size and speed, and the paper's figures for what they are of."""
    sets = list(dict.fromkeys(row["test_set"] for row in rows))
    kinds = {(row["system"], row["latency_ms"], row["decoder"]): row for row in rows}
    several = {row["decoder"] for row in rows} != {"greedy"}
    names = ["system", "latency", *(["decoder"] if several else []), *sets, "params", "MB", "smaller", "faster"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    teachers = teachers_of(rows)
    published = ["*published*", f"{PUBLISHED['latency_ms']} ms", *(["?"] if several else [])]
    published += [f"(+{PUBLISHED['relative_loss_low']:g} to +{PUBLISHED['relative_loss_high']:g})"] * len(sets)
    published += ["?", "?", f"{PUBLISHED['smaller']}x", f"{PUBLISHED['faster']}x"]
    last_of_480 = [key for key in kinds if key[:2] == ("student_stream", PUBLISHED["latency_ms"])][-1:]
    for key, first in kinds.items():
        mine = {row["test_set"]: row for row in rows if (row["system"], row["latency_ms"], row["decoder"]) == key}
        cells = [first["system"], "full" if first["latency_ms"] is None else f"{first['latency_ms']} ms"]
        if several:
            cells.append(first["decoder"])
        for test_set in sets:
            row = mine.get(test_set)
            loss = None if row is None else row.get("relative_loss")
            cells.append("-" if row is None else f"{row['wer']:.2f}" + ("" if loss is None else f" ({loss:+.1f})"))
        cells += [f"{first['params'] / 1e6:.2f} M", f"{first['model_bytes'] / 1e6:.1f}"]
        pairs = [(row, teachers[name, key[2]]) for name, row in mine.items() if (name, key[2]) in teachers]
        if pairs:
            cells.append(f"{pairs[0][1]['model_bytes'] / first['model_bytes']:.1f}x")
            own_s, teacher_s = (sum(row["rtf"] * row["audio_s"] for row in side) for side in zip(*pairs, strict=True))
            cells.append(f"{teacher_s / own_s:.1f}x")
        else:
            cells += ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
        if [key] == last_of_480:
            lines.append("| " + " | ".join(published) + " |")
    if not last_of_480:
        lines.append("| " + " | ".join(published) + " |")
    return lines


def table(mine: list[dict], unit: str) -> list[str]:
    """One test set: each system's error rate (wer or ter), relative loss, size and speed beside the teacher's."""
    decoders = {row["decoder"] for row in mine}
    rate = f"{unit.upper()} % (95 %)"
    names = ["system", "latency", rate, "sub/del/ins", "relative loss % (95 %)", "p", "params", "smaller"]
    names += ["RTF", "faster"]
    if decoders != {"greedy"}:
        names.insert(2, "decoder")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    teachers = teachers_of(mine)
    for row in mine:
        teacher = teachers.get((row["test_set"], row["decoder"]))
        loss = "-"
        if row.get("relative_loss") is not None:
            loss = f"{row['relative_loss']:+.1f} ({interval(row['relative_low'], row['relative_high'])})"
        elif row["system"] != "teacher" and teacher:
            loss = "teacher has no error"
        p = row.get("p_value")
        scores = row["scores"][unit]
        cells = {
            "system": row["system"],
            "latency": "full" if row["latency_ms"] is None else f"{row['latency_ms']} ms",
            "decoder": row["decoder"],
            rate: f"{scores['err']:.2f} ({interval(row[f'{unit}_low'], row[f'{unit}_high'])})",
            "sub/del/ins": f"{scores['sub']}/{scores['del']}/{scores['ins']}",
            "relative loss % (95 %)": loss,
            "p": "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
            "params": f"{row['params'] / 1e6:.2f} M",
            "smaller": f"{teacher['model_bytes'] / row['model_bytes']:.1f}x" if teacher else "-",
            "RTF": f"{row['rtf']:.4f}",
            "faster": f"{teacher['rtf'] / row['rtf']:.1f}x" if teacher else "-",
        }
        lines.append("| " + " | ".join(cells[name] for name in names) + " |")
    return lines


def espnet_tables(rows: list[dict]) -> list[str]:
    """Words, characters and tokens as ESPnet's RESULTS.md has them; the names are those of the decode directories."""
    lines = ["## As ESPnet tabulates them"]
    for unit in ("wer", "cer", "ter"):
        mine = [row for row in rows if unit in row["scores"]]
        if mine:
            lines += ["", f"### {unit.upper()}", "", "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|---" * 9 + "|"]
        for row in mine:
            chunk = "full" if row["latency_ms"] is None else f"{row['latency_ms']}ms"
            name = f"decode_{chunk}" + ("" if row["decoder"] == "greedy" else f"_{row['decoder']}")
            scores = row["scores"][unit]
            percent = {kind: 100 * scores[kind] / max(scores["units"], 1) for kind in ("sub", "del", "ins")}
            figures = [100 - percent["sub"] - percent["del"], *percent.values(), scores["err"]]
            figures.append(100 * scores["wrong_utterances"] / scores["utterances"])
            cells = f"{row['system']}/{name}/{row['test_set']}|{scores['utterances']}|{scores['units']}|"
            lines.append(f"|{cells}{'|'.join(f'{figure:.1f}' for figure in figures)}|")
    return lines


def speaker_table(mine: list[dict]) -> list[str]:
    """Error rate of each speaker, by system; of many speakers the ones that the first system recognises worst."""
    mine = [row for row in mine if row.get("speakers")]
    if not mine or len(mine[0]["speakers"]) < 2:
        return []

    def wer(row: dict, speaker: str) -> float:
        words, wrong = row["speakers"].get(speaker, (0, 0))
        return 100 * wrong / words if words else math.nan

    speakers = sorted(mine[0]["speakers"], key=lambda speaker: -wer(mine[0], speaker))
    shown = speakers if len(speakers) <= MOST_SPEAKERS else speakers[:MOST_SPEAKERS]
    title = "By speaker" + ("" if shown is speakers else f", {MOST_SPEAKERS} of {len(speakers)}, the worst")
    lines = ["", f"{title}:", "", "| speaker | words | " + " | ".join(map(name_of, mine)) + " |"]
    lines.append("|---" * (len(mine) + 2) + "|")
    for speaker in shown:
        cells = " | ".join(f"{wer(row, speaker):.1f}" for row in mine)
        lines.append(f"| {speaker} | {mine[0]['speakers'][speaker][0]} | {cells} |")
    return lines


def render(results: dict) -> str:
    """RESULTS.md as text, from what is in results.json."""
    rows = results["rows"]
    how = "Greedy decoding."
    if weighted := [row for row in rows if row["decoder"] != "greedy"]:
        how = (
            "Decoders: greedy; beam, CTC prefix beam search; wfst, a graph of tokens, lexicon and n-gram. Their "
            f"n-gram is `{weighted[0].get('lm')}`, its weight and the bonus per word were chosen on the validation set "
            "(`tuned.json` of each system). A system is compared with the teacher of the same decoder."
        )
    if any(row.get("scoring") == "gigaspeech" for row in rows):
        how += " Scored as GigaSpeech is: hyphens split, fillers (UH, UM ...) and tags not counted."
    lines = [f"# Results of {results['recipe']}", ""]
    lines += [f"- {name}: `{value}`" for name, value in results["environment"].items()]
    lines += [
        "",
        f"{how} The latency of a streaming student is its chunk with its look-ahead: a frame waits that "
        "long at worst. Relative loss, size (float32 bytes) and speed (real-time factor, RTF, of recognition one "
        f"utterance at a time on {rows[0]['threads']} CPU thread(s)) are against the teacher, full context. "
        "Intervals: paired bootstrap over utterances. p: matched-pairs test of as many errors as the teacher's.",
    ]
    if any(row["wer"] is not None for row in rows):
        lines += ["", "## Beside the paper", "", "WER % (relative loss %) of each test set.", ""]
        lines += paper_table([row for row in rows if row["wer"] is not None])
        lines += [
            "",
            "*published*: the abstract of DistillW2V2 (arXiv 2303.09278) of its own teacher and student, over its test "
            "sets of GigaSpeech, LibriSpeech and an in-house corpus. A question mark is what it does not say.",
        ]
    for test_set in dict.fromkeys(row["test_set"] for row in rows):
        of_set = [row for row in rows if row["test_set"] == test_set]
        words = next((row["words"] for row in of_set if row["wer"] is not None), None)
        size = f"{of_set[0]['utterances']} utterances" + ("" if words is None else f", {words} words")
        lines += ["", f"## {test_set} ({size})"]
        for unit in ("wer", "ter"):
            if mine := [row for row in of_set if (row["wer"] is None) == (unit == "ter")]:
                lines += ["", *table(mine, unit), *speaker_table(mine)]
    lines += ["", *espnet_tables(rows)]
    return "\n".join(lines) + "\n"


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expdir", type=Path, required=True)
    parser.add_argument("--test_sets", required=True, help="names, separated by spaces")
    parser.add_argument("--recipe", required=True, help="name of the recipe, for the heading")
    args = parser.parse_args(argv)
    results = {
        "recipe": args.recipe,
        "environment": environment(),
        "published": PUBLISHED,
        "rows": collect(args.expdir, args.test_sets.split()),
    }
    with atomic_write(args.expdir / "results.json") as stream:
        json.dump(results, stream, indent=1)
    text = render(json.loads((args.expdir / "results.json").read_text(encoding="utf-8")))
    with atomic_write(args.expdir / "RESULTS.md") as stream:
        stream.write(text)
    print(text)


if __name__ == "__main__":
    main()
