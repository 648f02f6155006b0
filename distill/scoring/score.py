"""Score decode directories: text, sclite's input and report, and score.json.

With sclite where it is installed, else with :mod:`distill.scoring.counts`, whose counts are the same. See
``distill/bin/score.py`` for the files that are written.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.data.gigaspeech import scored_words
from distill.errors import UserError
from distill.files import atomic_write
from distill.scoring.counts import Counts, count_errors
from distill.scoring.sclite import find_sclite, run_sclite
from distill.scoring.text import fold_case, piece_splitter, read_hypotheses, read_text, split_characters
from distill.scoring.trn import write_ctm_and_stm, write_trn

Texts = dict[str, str]  # utterance id -> text
UNITS = ("wer", "cer", "ter")  # error rates of words, characters and tokens
NORMALISATIONS: dict[str, Callable[[str], str]] = {"plain": str, "gigaspeech": scored_words}


def score_directories(
    ref: Path, decode_dir: Sequence[Path], scoring: str, bpemodel: Path | None, ref_tokens: Path | None
) -> None:
    """Score decode directories of one test set, and print a line with the error rates of each; see :func:`score`."""
    for directory in decode_dir:
        scores = score(ref, directory, scoring, bpemodel, ref_tokens)
        rates = ", ".join(f"{result[unit]:.2f} % {unit.upper()}" for unit, result in scores.items() if unit in result)
        result, units = (scores["wer"], "words") if "wer" in scores else (scores["ter"], "tokens")
        print(f"{directory}: {rates} of {result['words']} {units} ({result['scorer']})")


def check_error(decode_dir: Path, max_error: float, allow: bool) -> None:
    """Print the error rate of a scored decode directory, of words or else of tokens.

    Args:
        decode_dir: scored by :func:`score_directories`.
        max_error: per cent of errors from which a model recognises too little.
        allow: whether that is a warning.

    Raises:
        UserError: there are more errors, or no score.
    """
    files = [decode_dir / f"score_{unit}" / "score.json" for unit in ("wer", "ter")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{decode_dir}: is not scored; run local/score.sh first")
    result = json.loads(file.read_text(encoding="utf-8"))
    unit, rate = ("words", result["wer"]) if "wer" in result else ("tokens", result["ter"])
    text = f"{decode_dir}: {rate:.2f} % of the {unit} wrong"
    if rate > max_error:
        text += f", more than {max_error:g} %, and its students will hardly be better"
        if not allow:
            raise UserError(f"{text}; train the teacher longer, take another, or give --allow_bad_teacher true")
        print(f"warning: {text}", file=sys.stderr)
        return
    print(text)


def score(
    ref_text: Path,
    decode_dir: Path,
    scoring: str = "plain",
    bpemodel: Path | None = None,
    ref_tokens: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Score one decode directory and write the results into it.

    Args:
        ref_text: Kaldi text file of the references; ``utt2spk`` beside it gives the speakers.
        decode_dir: holds ``hyp.JOB.jsonl``, and ``about.json`` whose ``text: tokens`` says that there are no words.
        scoring: how text is normalised before it is scored, a key of :data:`NORMALISATIONS`.
        bpemodel: sentencepiece model that splits words into the tokens of ``ter``.
        ref_tokens: Kaldi text file of the references in tokens, to score the tokens that were recognised.

    Returns:
        The content of score.json by unit: ``wer``, ``cer`` and ``ter``, those that apply.

    Raises:
        UserError: references and hypotheses are not of the same utterances, or there is nothing to score.
    """
    refs, rows = read_text(ref_text), read_hypotheses(decode_dir)
    if differing := sorted(refs.keys() ^ rows.keys()):
        raise UserError(
            f"{decode_dir}: {len(differing)} utterances are in only one of {ref_text} and the hypotheses, "
            f"such as {differing[0]}; decode again (stage 12)"
        )
    normalise = NORMALISATIONS[scoring]
    refs = {key: normalise(refs[key]) for key in sorted(refs)}
    if not any(refs.values()):
        raise UserError(f"{ref_text}: no words to score")
    _write_kaldi_text(decode_dir, rows)
    utt2spk = ref_text.with_name("utt2spk")
    speakers = read_text(utt2spk) if utt2spk.is_file() else {}
    units: dict[str, tuple[Texts, Texts]] = {}
    if _has_words(decode_dir):
        units = _word_units(refs, {key: normalise(_words(rows[key])) for key in refs}, bpemodel)
    if ref_tokens is not None:
        units["ter"] = _token_unit(ref_text, refs, rows, ref_tokens)
    if not units:
        raise UserError(f"{decode_dir}: holds tokens, not words; give --ref_tokens")
    for unit in set(UNITS) - units.keys():
        shutil.rmtree(decode_dir / f"score_{unit}", ignore_errors=True)  # left by an earlier scoring
    if "wer" in units and all("words" in row for row in rows.values()):
        write_ctm_and_stm(refs, rows, speakers, normalise, decode_dir / "score_wer")
    results = {}
    for unit, (unit_refs, unit_hyps) in units.items():
        score_dir = decode_dir / f"score_{unit}"
        scorer, counts = _count(unit_refs, unit_hyps, score_dir)
        result = {**_summary(unit, refs, counts, rows, speakers), "scorer": scorer, "scoring": scoring}
        with atomic_write(score_dir / "score.json") as stream:
            json.dump(result, stream)
        results[unit] = result
    return results


def _words(row: Mapping[str, Any]) -> str:
    """The recognised text of a decoder's row, with single spaces."""
    return " ".join(row["text"].split())


def _has_words(decode_dir: Path) -> bool:
    """Whether the decoder put out words; a phone model without a lexicon puts out tokens."""
    about = decode_dir / "about.json"
    return not about.is_file() or json.loads(about.read_text(encoding="utf-8")).get("text") != "tokens"


def _write_kaldi_text(decode_dir: Path, rows: Mapping[str, dict[str, Any]]) -> None:
    """Write the hypotheses as a Kaldi text file, and with n-best output ``nbest`` and ``nbest_score``."""
    with atomic_write(decode_dir / "text") as stream:
        stream.writelines(f"{key} {_words(rows[key])}\n" for key in sorted(rows))
    if any("nbest" in row for row in rows.values()):
        with atomic_write(decode_dir / "nbest") as nbest, atomic_write(decode_dir / "nbest_score") as scores:
            for key in sorted(rows):
                for rank, hypothesis in enumerate(rows[key].get("nbest") or [rows[key]], 1):
                    nbest.write(f"{key}-{rank} {hypothesis['text']}\n")
                    scores.write(f"{key}-{rank} {hypothesis['score']:.4f}\n")


def _word_units(refs: Texts, hyps: Texts, bpemodel: Path | None) -> dict[str, tuple[Texts, Texts]]:
    """References and hypotheses in words (wer), characters (cer) and, with a model, sentencepiece's pieces (ter)."""
    splitters: dict[str, Callable[[str], str]] = {"wer": str, "cer": split_characters}
    if bpemodel is not None:
        splitters["ter"] = piece_splitter(bpemodel)
    return {
        unit: ({key: split(refs[key]) for key in refs}, {key: split(hyps[key]) for key in hyps})
        for unit, split in splitters.items()
    }


def _token_unit(
    ref_text: Path, refs: Texts, rows: Mapping[str, dict[str, Any]], ref_tokens: Path
) -> tuple[Texts, Texts]:
    """References and hypotheses in the tokens of the model."""
    tokens = read_text(ref_tokens)
    if missing := sorted(tokens.keys() ^ refs.keys()):
        raise UserError(f"{ref_tokens}: {missing[0]} is only in one of it and {ref_text}; make it again (stage 5)")
    return tokens, {key: " ".join(token["token"] for token in rows[key]["tokens"]) for key in refs}


def _count(refs: Texts, hyps: Texts, score_dir: Path) -> tuple[str, list[Counts]]:
    """Name of the scorer, and the counts of each utterance in the order of the ids; writes trn files and result.txt."""
    ref_trn, hyp_trn, report = score_dir / "ref.trn", score_dir / "hyp.trn", score_dir / "result.txt"
    write_trn(ref_trn, refs)
    write_trn(hyp_trn, hyps)
    keys = sorted(refs)
    if sclite := find_sclite():
        counts = run_sclite(sclite, ref_trn, hyp_trn, report)
    else:
        counts = count_errors(*([fold_case(texts[key]).split() for key in keys] for texts in (refs, hyps)))
        with atomic_write(report) as stream:
            stream.write("sclite is not installed: counted as sclite does, without its report\n")
            for key, row in zip(keys, counts, strict=True):
                stream.write(
                    f"{key}: {row.words} words, {row.substitutions} substitutions, {row.deletions} deletions, "
                    f"{row.insertions} insertions\n  REF: {refs[key]}\n  HYP: {hyps[key]}\n"
                )
    if len(counts) != len(keys):
        raise UserError(f"{report}: {len(counts)} utterances scored of {len(keys)}; see the file")
    return "sclite" if sclite else "distill", counts


def _summary(
    unit: str,
    refs: Texts,
    counts: Sequence[Counts],
    rows: Mapping[str, dict[str, Any]],
    speakers: Mapping[str, str],
) -> dict[str, Any]:
    """Content of score.json: totals, the error rate in per cent, and (words, errors) by utterance and by speaker."""
    timed = [rows[key] for key in refs if "compute_s" in rows[key]]  # the sample that was recognised one at a time
    words = sum(row.words for row in counts)
    errors = sum(row.errors for row in counts)
    by_speaker: dict[str, list[int]] = {}
    for key, row in zip(refs, counts, strict=True):
        if key in speakers:
            totals = by_speaker.setdefault(speakers[key], [0, 0])
            totals[0] += row.words
            totals[1] += row.errors
    return {
        "words": words,
        "sub": sum(row.substitutions for row in counts),
        "del": sum(row.deletions for row in counts),
        "ins": sum(row.insertions for row in counts),
        **({unit: 100 * errors / words} if words else {}),
        "utterances": len(counts),
        "wrong_utterances": sum(row.errors > 0 for row in counts),
        "audio_s": sum(rows[key]["audio_s"] for key in refs),
        "timed_utterances": len(timed),
        "timed_s": sum(row["audio_s"] for row in timed),
        "compute_s": sum(row["compute_s"] for row in timed),
        "errors": [[row.words, row.errors] for row in counts],
        "speakers": dict(sorted(by_speaker.items())),
    }
