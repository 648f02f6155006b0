"""Score a recognised test set with NIST sclite, or with jiwer where sclite is not installed.

    python -m distill.bin.score --ref dump/raw/test/text --decode_dir exp/student_full/decode_full/test

reads DECODE_DIR/hyp.*.jsonl and writes DECODE_DIR/text, DECODE_DIR/score_wer/{ref.trn,hyp.trn,result.txt} and
score.json: words, errors by kind and, for the confidence intervals, the errors of every utterance.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from distill.errors import UserError, cli
from distill.files import atomic_write

Counts = dict[str, int]  # words, sub, del, ins


def read_text(path: Path) -> dict[str, str]:
    """Utterance id to text of a Kaldi ``text`` file; an utterance may have no words."""
    texts: dict[str, str] = {}
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            utterance, _, text = line.strip().partition(" ")
            if not utterance:
                raise UserError(f"{path}:{number}: empty line; remove it")
            if utterance in texts:
                raise UserError(f"{path}:{number}: utterance {utterance} is there twice; remove one")
            texts[utterance] = " ".join(text.split())
    if not texts:
        raise UserError(f"{path}: empty; there is nothing to score")
    return texts


def read_hypotheses(decode_dir: Path) -> dict[str, dict]:
    """Utterance id to the decoder's row, over all jobs of a decode directory."""
    rows: dict[str, dict] = {}
    for path in sorted(decode_dir.glob("hyp.*.jsonl")):
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not JSON ({error.msg}); remove the file, decode again") from None
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

    Characters with a meaning in trn ({ / } alternatives, @ a null word, parentheses) are spelt as look-alikes, alike in
    reference and hypothesis, so that they are scored as the words they are.
    """
    spelling = str.maketrans(
        {"{": "<lb>", "}": "<rb>", "(": "<lp>", ")": "<rp>", "/": "<sl>", "@": "<at>", "\\": "<bs>"}
    )
    return [f"{texts[key].translate(spelling)} (utt-{index:07d})" for index, key in enumerate(sorted(texts))]


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


def score_jiwer(refs: list[str], hyps: list[str], result: Path) -> list[Counts]:
    """The same counts by jiwer (Levenshtein with equal weights; sclite weighs a substitution 4 and a gap 3)."""
    import jiwer

    counts = []
    for ref, hyp in zip(refs, hyps, strict=True):
        words = len(ref.split())
        if words == 0:
            counts.append({"words": 0, "sub": 0, "del": 0, "ins": len(hyp.split())})
            continue
        out = jiwer.process_words(ref.lower(), hyp.lower())
        counts.append({"words": words, "sub": out.substitutions, "del": out.deletions, "ins": out.insertions})
    with atomic_write(result) as stream:
        stream.write("scored by jiwer; install sctk for sclite's report\n")
        for ref, hyp, row in zip(refs, hyps, counts, strict=True):
            stream.write(f"{row}\n  REF: {ref}\n  HYP: {hyp}\n")
    return counts


def score(ref_text: Path, decode_dir: Path) -> dict:
    """Score one decode directory and return what is written to score.json."""
    refs, rows = read_text(ref_text), read_hypotheses(decode_dir)
    differing = sorted(refs.keys() ^ rows.keys())
    if differing:
        raise UserError(
            f"{decode_dir}: {len(differing)} utterances are in only one of {ref_text} and the hypotheses, "
            f"such as {differing[0]}; decode again (stage 12)"
        )
    keys = sorted(refs)
    hyps = {key: " ".join(rows[key]["text"].split()) for key in keys}
    with atomic_write(decode_dir / "text") as stream:
        stream.writelines(f"{key} {hyps[key]}\n" for key in keys)
    score_dir = decode_dir / "score_wer"
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
        counts = score_jiwer([refs[key] for key in keys], [hyps[key] for key in keys], result)
    if len(counts) != len(keys):
        raise UserError(f"{result}: {len(counts)} utterances scored of {len(keys)}; see the file")
    total = {kind: sum(row[kind] for row in counts) for kind in ("words", "sub", "del", "ins")}
    if total["words"] == 0:
        raise UserError(f"{ref_text}: no words to score")
    summary = {
        **total,
        "scorer": "sclite" if sclite else "jiwer",
        "wer": 100 * (total["sub"] + total["del"] + total["ins"]) / total["words"],
        "utterances": len(keys),
        "audio_s": sum(rows[key]["audio_s"] for key in keys),
        "compute_s": sum(rows[key]["compute_s"] for key in keys),
        "errors": [[row["words"], row["sub"] + row["del"] + row["ins"]] for row in counts],
    }
    with atomic_write(score_dir / "score.json") as stream:
        json.dump(summary, stream)
    return summary


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", type=Path, required=True, help="Kaldi text file of the references")
    parser.add_argument("--decode_dir", type=Path, nargs="+", required=True, help="directories that decode wrote")
    args = parser.parse_args(argv)
    for decode_dir in args.decode_dir:
        out = score(args.ref, decode_dir)
        print(f"{decode_dir}: {out['wer']:.2f} % WER of {out['words']} words ({out['scorer']})")


if __name__ == "__main__":
    main()
