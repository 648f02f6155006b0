"""Checks of how long the training utterances are and how many of them the limits keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill.preflight.options import Options, runs

# Stages whose results a later one reads
NEEDED = {10: (6, 7, 9), 11: (6, 7, 10), 12: (7, 10, 11), 14: (7, 10, 11), 15: (11,), 16: (11,)}
# So many of the shortest utterances, or this share of a small corpus, are enough for a network to learn to align
FEWEST, SHORT_SHARE = 300, 0.3


def check_lengths(options: Options) -> Iterator[str]:
    """What earlier stages were to make and is not there, and sets of which too little is left."""
    sets = [options["train_set"], options["valid_set"], *options["test_sets"].split()]
    if not runs(options, 1) and int(options["stage"]) <= 4:
        for name in sets:
            if not Path("data", name, "wav.scp").is_file():
                yield f"data/{name}/wav.scp: not found; run stage 1 first"
    for stage, needed in NEEDED.items():
        for earlier in needed if runs(options, stage) else ():
            if not runs(options, earlier) and not Path(options["expdir"], ".stages", str(earlier)).is_file():
                yield (
                    f"--stage {options['stage']}: stage {earlier} has not been run in --expdir {options['expdir']}, "
                    f"and stage {stage} needs it; begin with --stage {earlier}"
                )
                return
    if int(options["stage"]) > 4:
        for name in options["test_sets"].split() if runs(options, 12) or runs(options, 13) else ():
            path = Path(options["dumpdir"], "raw", name, "wav.scp")
            if not path.is_file():
                yield f"--test_sets {name}: {path} not found; add it with --stage 1 --stop_stage 4 and the same options"
    durations = training_durations(options)
    if durations is None:
        return
    limits = float(options["min_wav_duration"]), float(options["max_wav_duration"])
    kept = [seconds for seconds in durations if limits[0] <= seconds <= limits[1]]
    if not kept:
        yield (
            f"--min_wav_duration {limits[0]:g}, --max_wav_duration {limits[1]:g}: no utterance of "
            f"{options['train_set']} is that long; they take {min(durations):.1f} to {max(durations):.1f} s"
        )
    if options["teacher_init_max_s"] not in ("", "auto") and runs(options, 7) and kept and not options["teacher"]:
        most = float(options["teacher_init_max_s"])
        short = sum(seconds <= most for seconds in kept)
        enough = min(FEWEST, math.ceil(SHORT_SHARE * len(kept)))
        if short < enough:
            longer = sorted(kept)[enough - 1]
            yield (
                f"--teacher_init_max_s {options['teacher_init_max_s']}: leaves {short} of {len(kept)} utterances; "
                f"{math.ceil(longer * 10) / 10:g} leaves {enough} or more"
            )


def training_durations(options: Options) -> list[float] | None:
    """Seconds of each utterance of the training set, None before stage 3 has counted its samples."""
    path = Path(options["dumpdir"], "raw/org", options["train_set"], "utt2num_samples")
    if options["speed_perturb_factors"]:
        path = path.parent.with_name(path.parent.name + "_sp") / path.name
    try:
        return [int(line.split()[1]) / 16000 for line in path.read_text(encoding="utf-8").splitlines()] or None
    except (OSError, ValueError, IndexError):
        return None


def histogram(durations: Sequence[float], width: int = 40) -> Iterator[str]:
    """Lines of a histogram of seconds, in at most ten bins of equal width."""
    step = max(durations) / 10 or 1.0
    counts = [0] * 10
    for seconds in durations:
        counts[min(9, int(seconds / step))] += 1
    for index, count in enumerate(counts):
        bar = "#" * math.ceil(width * count / max(counts))
        yield f"  {index * step:6.1f} to {(index + 1) * step:6.1f} s {count:8d} {bar}"


def report_lengths(options: Options, write: Callable[[str], None] = print) -> None:
    """Write how long the training utterances are and how many the limits keep, where that is known."""
    durations = training_durations(options)
    if durations is None:
        return
    limits = float(options["min_wav_duration"]), float(options["max_wav_duration"])
    kept = [seconds for seconds in durations if limits[0] <= seconds <= limits[1]]
    write(
        f"{options['train_set']}: {len(durations)} utterances, {sum(durations) / 3600:.2f} h; {len(kept)} of "
        f"{limits[0]:g} to {limits[1]:g} s are trained on, {sum(kept) / 3600:.2f} h"
    )
    if options["teacher_init_max_s"] not in ("", "auto") and not options["teacher"]:
        most = float(options["teacher_init_max_s"])
        write(f"  the teacher's first training: {sum(s <= most for s in kept)} of at most {most:g} s")
    for line in histogram(durations):
        write(line)
