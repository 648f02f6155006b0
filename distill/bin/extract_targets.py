"""Store a teacher's outputs - hidden layers, logits, posteriors, n-best - so that students can be trained without it.

    extract="python -m distill.bin.extract_targets --teacher exp/teacher --wav_scp dump/raw/train/wav.scp \\
        --student_config conf/train_student_full.yaml --output dump/targets/train --num_jobs 4"
    $extract --plan               # print the space and time it takes; fails if the disk has less space
    $extract --train_codebooks    # with --dtype codebook, once before the jobs
    $extract --job 1              # ... to 4, in parallel; complete shards are not computed again
    $extract --merge              # manifest.json and, but for codes, sorted scp files
    $extract --check              # later: still of this teacher, this audio and these layers, and complete?
    $extract --verify             # the same, and is every byte what was written?

After --check or --verify has named a damaged or outdated shard, --job and --merge compute it again. Without any of
these options plan, codebooks, jobs and merge run in one process.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from distill.bin.arguments import add_computation
from distill.errors import cli

# Read when torch is loaded: threads that spin while they wait take the cores from other jobs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@cli
def main(argv: list[str] | None = None) -> None:
    from distill.targets import extract, store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the trained teacher")
    parser.add_argument("--wav_scp", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="such as dump/targets/train")
    parser.add_argument("--student_config", type=Path, nargs="+", default=[], help="the students' configurations")
    parser.add_argument("--graph", type=Path, help="denominator graph (stage 6), for posterior_top_k and nbest")
    parser.add_argument("--layers", default="auto", help="auto, or numbers such as 2,4,6 (default: auto)")
    parser.add_argument("--dtype", choices=tuple(store.COMPRESSION), default="float32", help="(default: float32)")
    add_computation(parser)
    parser.add_argument("--num_jobs", type=int, default=1)
    mode = parser.add_mutually_exclusive_group()
    for name in ("show_streams", "plan", "train_codebooks", "merge", "check", "verify"):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name)
    mode.add_argument("--job", type=int, help="compute the shards of this job, from 1 to --num_jobs")
    options = vars(parser.parse_args(argv))
    extract.run(options.pop("mode"), options.pop("job"), extract.Extraction(**options))


if __name__ == "__main__":
    main()
