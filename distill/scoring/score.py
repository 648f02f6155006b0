"""Score a recognised test set with NIST sclite, or, where it is not installed, with counts equal to its own.

    python -m distill.bin.score --ref dump/raw/test/text --decode_dir exp/student_full/decode_full/test

reads DECODE_DIR/hyp.*.jsonl and writes

    DECODE_DIR/text                         Kaldi text
    DECODE_DIR/nbest, nbest_score           texts and scores of UTTERANCE-1, -2 ... , where decode had --nbest
    DECODE_DIR/score_wer/{ref,hyp}.trn      what is scored, result.txt sclite's report
    DECODE_DIR/score_wer/{ref.stm,hyp.ctm}  the same with times and confidences, for tools that want those
    DECODE_DIR/score_wer/score.json         words, errors by kind, by utterance (for intervals) and by speaker (utt2spk)
    DECODE_DIR/score_cer                    the same of characters, a space being one of them
    DECODE_DIR/score_ter                    the same of tokens: with --bpemodel the pieces of the words, with
                                            --ref_tokens the tokens that were recognised (phones)

What a model of phones says without a lexicon has no words, and so neither score_wer nor score_cer.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from distill.data.gigaspeech import scored_words
from distill.errors import UserError, cli
from distill.files import atomic_write, json_object, text_lines

Counts = dict[str, int]  # words, sub, del, ins
SPELLING = str.maketrans(
    {
        "{": "<lb>",
        "}": "<rb>",
        "(": "<lp>",
        ")": "<rp>",
        "/": "<sl>",
        "@": "<at>",
        "\\": "<bs>",
        ";": "<sc>",
        "*": "<st>",
    }
)


def read_text(path: Path) -> dict[str, str]:
    """Utterance id to text of a Kaldi ``text`` file; an utterance may have no words."""
    texts: dict[str, str] = {}
    for number, line in text_lines(path, "expected lines of an utterance id and its words"):
        fields = line.split()
        if not fields:
            raise UserError(f"{path}:{number}: empty line; remove it")
        utterance, *words = fields
        if utterance in texts:
            raise UserError(f"{path}:{number}: utterance {utterance} is there twice; remove one")
        texts[utterance] = " ".join(words)
    if not texts:
        raise UserError(f"{path}: empty; there is nothing to score")
    return texts


def read_hypotheses(decode_dir: Path) -> dict[str, dict]:
    """Utterance id to the decoder's row, over all jobs of a decode directory."""
    rows: dict[str, dict] = {}
    for path in sorted(decode_dir.glob("hyp.*.jsonl")):
        for number, line in text_lines(path, "decode again"):
            row = json_object(line, f"{path}:{number}", "remove the file, decode again")
            if not isinstance(row.get("utterance"), str):
                raise UserError(f"{path}:{number}: names no utterance; remove the file, decode again")
            if row["utterance"] in rows:
                raise UserError(f"{path}:{number}: {row['utterance']} was decoded twice; remove {decode_dir}")
            rows[row["utterance"]] = row
    return rows


def find_sclite() -> list[str] | None:
    """The command that runs sclite on this machine, or None."""
    if shutil.which("sclite"):
        return ["sclite"]
    if Path("/usr/lib/sctk/bin/sclite").exists():
        return ["/usr/lib/sctk/bin/sclite"]
    return ["sctk", "sclite"] if shutil.which("sctk") else None


def trn_lines(texts: dict[str, str]) -> list[str]:
    """Lines of sclite's trn format. Positions stand for the ids, as sclite folds the case of ids and reads ( ) in them.

    Characters with a meaning in trn ({ / } alternatives, @ a null word, parentheses, ;; a comment, * a gap) are spelt
    as look-alikes, alike in
    reference and hypothesis, so that they are scored as the words they are.
    """
    return [f"{texts[key].translate(SPELLING)} (utt-{index:07d})" for index, key in enumerate(sorted(texts))]


def write_times(
    refs: dict[str, str],
    rows: dict[str, dict],
    speakers: dict[str, str],
    counted: Callable[[str], str],
    score_dir: Path,
) -> None:
    """hyp.ctm (utterance, 1, start, duration, word, confidence) and ref.stm, a segment for each utterance.

    A word lasts 10 ms at least and ends with its utterance at the latest, so that it counts for its segment. Where
    ``counted`` makes several words of one, each has its time.
    """
    with atomic_write(score_dir / "hyp.ctm") as ctm, atomic_write(score_dir / "ref.stm") as stm:
        for key in sorted(refs):
            audio_s = rows[key]["audio_s"]
            text = refs[key].translate(SPELLING)
            stm.write(f"{key} 1 {speakers.get(key, key)} 0.00 {audio_s + 0.01:.2f} <o> {text}\n")
            for word in rows[key]["words"]:
                start = max(0.0, min(word["start_s"], audio_s - 0.01))
                length = max(0.01, min(word["end_s"], audio_s) - start)
                for part in counted(word["word"]).split():
                    spelled = part.translate(SPELLING)
                    ctm.write(f"{key} 1 {start:.2f} {length:.2f} {spelled} {word['confidence']:.4f}\n")


def score_sclite(command: list[str], ref: Path, hyp: Path, result: Path) -> list[Counts]:
    """Run sclite; write its report to ``result`` and return the counts of each utterance, in order."""
    options = ["-i", "rm", "-e", "utf-8", "-o", "all", "stdout"]
    run = subprocess.run(
        [*command, "-r", str(ref), "trn", "-h", str(hyp), "trn", *options],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if run.returncode != 0 or "Scores:" not in run.stdout:
        raise UserError(f"{ref}: sclite failed: {(run.stderr or run.stdout).strip().splitlines()[-1:]}")
    with atomic_write(result) as stream:
        stream.write(run.stdout)
    by_position: dict[int, Counts] = {}
    for block in re.finditer(
        r"id: \(utt-(\d+)\)\s.*?Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", run.stdout, re.S
    ):
        position, correct, sub, deleted, inserted = map(int, block.groups())
        by_position[position] = {"words": correct + sub + deleted, "sub": sub, "del": deleted, "ins": inserted}
    return [by_position[position] for position in sorted(by_position)]


def align(ref: list[str], hyp: list[str]) -> list[tuple[int | None, int | None]]:
    """Positions of the words that sclite aligns: a substitution costs 4, an insertion or deletion 3.

    None stands in place of a word that was inserted (first) or left out (second). Of equally cheap alignments sclite
    takes the one that, from the end, matches or substitutes first, then inserts.
    """
    above = list(range(0, 3 * len(hyp) + 1, 3))
    costs = [above]
    for number, word in enumerate(ref, 1):
        row = [3 * number]
        for place, other in enumerate(hyp):
            row.append(min(above[place] + 4 * (word != other), above[place + 1] + 3, row[place] + 3))
        costs.append(row)
        above = row
    pairs: list[tuple[int | None, int | None]] = []
    i, j = len(ref), len(hyp)
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + 4 * (ref[i - 1] != hyp[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif j and costs[i][j] == costs[i][j - 1] + 3:
            j -= 1
            pairs.append((None, j))
        else:
            i -= 1
            pairs.append((i, None))
    return pairs[::-1]


def count_errors(ref: list[str], hyp: list[str]) -> Counts:
    """Errors of the alignment that sclite chooses."""
    counts = {"words": len(ref), "sub": 0, "del": 0, "ins": 0}
    for i, j in align(ref, hyp):
        if i is None or j is None:
            counts["ins" if i is None else "del"] += 1
        else:
            counts["sub"] += ref[i] != hyp[j]
    return counts


def score_here(refs: list[str], hyps: list[str], result: Path) -> list[Counts]:
    """sclite's counts without sclite."""
    counts = [count_errors(fold(ref).split(), fold(hyp).split()) for ref, hyp in zip(refs, hyps, strict=True)]
    with atomic_write(result) as stream:
        stream.write("sclite is not installed: counted as it does, without its report\n")
        for ref, hyp, row in zip(refs, hyps, counts, strict=True):
            stream.write(f"{row}\n  REF: {ref}\n  HYP: {hyp}\n")
    return counts


def fold(text: str) -> str:
    """Case as sclite sees it: A to Z are a to z, other scripts' letters stay as they are."""
    return re.sub("[A-Z]+", lambda capitals: capitals.group().lower(), text)


def characters(text: str) -> str:
    """Characters as words, ``<space>`` for a space, as ESPnet scores them."""
    return " ".join("<space>" if character == " " else character for character in text)


def pieces(bpemodel: Path) -> Callable[[str], str]:
    """What splits text into the pieces of a sentencepiece model."""
    from sentencepiece import SentencePieceProcessor

    if not bpemodel.is_file():
        raise UserError(f"{bpemodel}: not found; stage 5 makes it")
    model = SentencePieceProcessor(model_file=str(bpemodel))
    return lambda text: " ".join(model.encode_as_pieces(text))


def score_unit(
    refs: dict[str, str],
    hyps: dict[str, str],
    rows: dict[str, dict],
    speakers: dict[str, str],
    score_dir: Path,
    scoring: str,
) -> dict:
    """Score texts of words, or of what stands for words, and return what is written to score.json."""
    keys = sorted(refs)
    for name, texts in (("ref.trn", refs), ("hyp.trn", hyps)):
        with atomic_write(score_dir / name) as stream:
            stream.writelines(line + "\n" for line in trn_lines(texts))
    sclite, result = find_sclite(), score_dir / "result.txt"
    if sclite:
        with tempfile.TemporaryDirectory() as folder:  # sclite writes beside its input
            for name in ("ref.trn", "hyp.trn"):
                shutil.copy(score_dir / name, folder)
            counts = score_sclite(sclite, Path(folder, "ref.trn"), Path(folder, "hyp.trn"), result)
    else:
        counts = score_here([refs[key] for key in keys], [hyps[key] for key in keys], result)
    if len(counts) != len(keys):
        raise UserError(f"{result}: {len(counts)} utterances scored of {len(keys)}; see the file")
    total = {kind: sum(row[kind] for row in counts) for kind in ("words", "sub", "del", "ins")}
    errors = [row["sub"] + row["del"] + row["ins"] for row in counts]
    by_speaker: dict[str, list[int]] = {}
    for key, row, wrong in zip(keys, counts, errors, strict=True):
        if key in speakers:
            sums = by_speaker.setdefault(speakers[key], [0, 0])
            sums[0] += row["words"]
            sums[1] += wrong
    rate = {score_dir.name.removeprefix("score_"): 100 * sum(errors) / total["words"]} if total["words"] else {}
    summary = {
        **total,
        **rate,
        "scorer": "sclite" if sclite else "distill",
        "scoring": scoring,
        "utterances": len(keys),
        "wrong_utterances": sum(map(bool, errors)),
        "audio_s": sum(rows[key]["audio_s"] for key in keys),
        "compute_s": sum(rows[key]["compute_s"] for key in keys),
        "errors": [[row["words"], wrong] for row, wrong in zip(counts, errors, strict=True)],
        "speakers": dict(sorted(by_speaker.items())),
    }
    with atomic_write(score_dir / "score.json") as stream:
        json.dump(summary, stream)
    return summary


def score(
    ref_text: Path,
    decode_dir: Path,
    scoring: str = "plain",
    bpemodel: Path | None = None,
    ref_tokens: Path | None = None,
) -> dict[str, dict]:
    """Score one decode directory; ``wer``, ``cer`` and ``ter``, as far as they apply, with what score.json holds."""
    refs, rows = read_text(ref_text), read_hypotheses(decode_dir)
    differing = sorted(refs.keys() ^ rows.keys())
    if differing:
        raise UserError(
            f"{decode_dir}: {len(differing)} utterances are in only one of {ref_text} and the hypotheses, "
            f"such as {differing[0]}; decode again (stage 12)"
        )
    counted = scored_words if scoring == "gigaspeech" else str
    refs = {key: counted(text) for key, text in refs.items()}
    if not any(refs.values()):
        raise UserError(f"{ref_text}: no words to score")
    keys = sorted(refs)
    said = {key: " ".join(rows[key]["text"].split()) for key in keys}
    with atomic_write(decode_dir / "text") as stream:
        stream.writelines(f"{key} {said[key]}\n" for key in keys)
    if any("nbest" in row for row in rows.values()):
        with atomic_write(decode_dir / "nbest") as nbest, atomic_write(decode_dir / "nbest_score") as scores:
            for key in keys:
                for number, other in enumerate(rows[key].get("nbest") or [rows[key]], 1):
                    nbest.write(f"{key}-{number} {other['text']}\n")
                    scores.write(f"{key}-{number} {other['score']:.4f}\n")
    utt2spk = ref_text.with_name("utt2spk")
    speakers = read_text(utt2spk) if utt2spk.is_file() else {}
    units: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    about = decode_dir / "about.json"
    if not about.is_file() or json.loads(about.read_text(encoding="utf-8")).get("text") != "tokens":
        hyps = {key: counted(text) for key, text in said.items()}
        units["wer"] = refs, hyps
        splits: dict[str, Callable[[str], str]] = {"cer": characters}
        if bpemodel is not None:
            splits["ter"] = pieces(bpemodel)
        for unit, split in splits.items():
            units[unit] = tuple({key: split(text) for key, text in texts.items()} for texts in (refs, hyps))  # type: ignore[assignment]
    if ref_tokens is not None:
        tokens = read_text(ref_tokens)
        if missing := sorted(tokens.keys() ^ refs.keys()):
            raise UserError(f"{ref_tokens}: {missing[0]} is only in one of it and {ref_text}; make it again (stage 5)")
        units["ter"] = tokens, {key: " ".join(token["token"] for token in rows[key]["tokens"]) for key in keys}
    if not units:
        raise UserError(f"{decode_dir}: holds tokens, not words; give --ref_tokens")
    for unit in {"wer", "cer", "ter"} - units.keys():
        shutil.rmtree(decode_dir / f"score_{unit}", ignore_errors=True)  # of other settings
    if "wer" in units and all("words" in row for row in rows.values()):
        write_times(refs, rows, speakers, counted, decode_dir / "score_wer")
    out = {}
    for unit, texts in units.items():
        out[unit] = score_unit(*texts, rows, speakers, decode_dir / f"score_{unit}", scoring)
    return out


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", type=Path, required=True, help="Kaldi text file of the references")
    parser.add_argument("--decode_dir", type=Path, nargs="+", required=True, help="directories that decode wrote")
    parser.add_argument(
        "--scoring",
        choices=("plain", "gigaspeech"),
        default="plain",
        help="plain: words as they are. gigaspeech: as that corpus is scored, hyphens split, fillers (UH, UM ...) and "
        "tags not counted (default: plain)",
    )
    parser.add_argument("--bpemodel", type=Path, help="sentencepiece model, for score_ter")
    parser.add_argument("--ref_tokens", type=Path, help="Kaldi text file of the references in tokens, for score_ter")
    args = parser.parse_args(argv)
    for decode_dir in args.decode_dir:
        scores = score(args.ref, decode_dir, args.scoring, args.bpemodel, args.ref_tokens)
        rates = ", ".join(f"{out[unit]:.2f} % {unit.upper()}" for unit, out in scores.items() if unit in out)
        out = scores.get("wer") or scores["ter"]
        print(f"{decode_dir}: {rates} of {out['words']} {'words' if 'wer' in scores else 'tokens'} ({out['scorer']})")


if __name__ == "__main__":
    main()
