"""Run a training with its output in a log file, and show its progress in one line on the terminal.

    python -m distill.bin.watch --log exp/student_full/train.log -- python -m distill.bin.train ...

The exit status is the training's. If it fails, the end of the log is printed.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from distill.errors import UserError, cli

EPOCH = re.compile(r"(\d+)/(\d+)epoch started")
BATCHES = re.compile(r"\[train\] mini-batch sizes summary: N-batch=(\d+)")
PER_EPOCH = re.compile(r"^num_iters_per_epoch: (\d+)", re.MULTILINE)
STEP = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch: (.*)")
RESULT = re.compile(r"(\d+)epoch results: (.*)")
# Of the warnings only those of this package's own modules
WARNING = re.compile(r"\((?:resume|distill_task|distill_model|distill_loss|teacher_targets):\d+\) WARNING: (.*)")
# ESPnet leaves out a comma here and there ("iter_time=0.004loss=1.2"); loss_scale is that of mixed precision.
VALUE = re.compile(r"(?<![a-z_])(loss(?!_scale)(?:_[a-z]+)?|ter)=([^, ]+)")
BAR = "{desc}: epoch {n:.1f}/{total} {percentage:3.0f}% [{elapsed}, {remaining} left{postfix}]"
POLL_SECONDS = 0.5


class Progress:
    """What the log has said so far: epoch, batch, losses."""

    def __init__(self, max_epoch: int | None) -> None:
        self.max_epoch = max_epoch
        self.epoch = 0
        self.first_epoch = 0
        self.batch = 0
        self.batches = 0
        self.shown: dict[str, str] = {}

    def read(self, line: str) -> None:
        """Take in one line of the trainer's log."""
        if match := EPOCH.search(line):
            self.epoch, self.batch = int(match[1]), 0
            self.first_epoch = self.first_epoch or self.epoch
            self.max_epoch = int(match[2])
        elif match := BATCHES.search(line):
            self.batches = int(match[1])
        elif match := STEP.search(line):
            self.batch = int(match[2])
            self.shown.update({f"train {k}": v for k, v in VALUE.findall(match[3])})
        elif match := RESULT.search(line):
            self.epoch, self.batch = int(match[1]) + 1, 0
            for section in match[2].split("["):
                name, _, values = section.partition("] ")
                if name in ("train", "valid"):
                    self.shown.update({f"{name} {k}": v for k, v in VALUE.findall(values)})

    @property
    def epochs_done(self) -> float:
        """Epochs finished, with the share of the running one as far as the log tells."""
        if not self.epoch:
            return 0.0
        return self.epoch - 1 + (min(1.0, self.batch / self.batches) if self.batches else 0.0)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.max_epoch or 0

    def summary(self) -> str:
        """The losses by name, the validation's first: it is what a training is judged by."""
        order = sorted(self.shown, key=lambda name: (not name.startswith("valid"), name))
        return ", ".join(f"{name} {self.shown[name]}" for name in order)


def iterations_per_epoch(directory: Path) -> int | None:
    """The training's --num_iters_per_epoch, if it limits an epoch to fewer batches than the data make."""
    config = directory / "config.yaml"
    match = PER_EPOCH.search(config.read_text(encoding="utf-8")) if config.is_file() else None
    return int(match[1]) if match else None


def last_lines(log: Path, begin: int, count: int) -> str:
    """The end of a log from byte ``begin`` on; only the error line where the training ended with one."""
    with open(log, "rb") as stream:
        stream.seek(begin)
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[-1].startswith("error: "):
        return lines[-1]
    return "\n".join([f"error: the training failed; the end of {log}:", *lines[-count:]])


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="log file, appended to")
    parser.add_argument("--max_epoch", type=int, help="epochs in all (default: what the log says)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the training's command")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("watch: no command; give it after --")
    args.log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(args.max_epoch)
    with open(args.log, "ab") as output:
        begin = output.tell()
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be run ({error.strerror})") from error
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    bar = tqdm(
        total=args.max_epoch,
        desc=args.log.parent.name,
        bar_format="{desc}: starting [{elapsed}]",
        dynamic_ncols=True,
    )
    try:
        with open(args.log, encoding="utf-8", errors="replace") as log, bar:
            log.seek(begin)
            partial = ""
            said = None
            while True:
                running = process.poll() is None
                for chunk in log:
                    partial += chunk
                    if partial.endswith("\n"):
                        progress.read(partial)
                        if warning := WARNING.search(partial):
                            bar.write(f"warning: {warning[1]}", file=sys.stderr)
                        if BATCHES.search(partial):
                            progress.batches = iterations_per_epoch(args.log.parent) or progress.batches
                        partial = ""
                if progress.epochs and progress.first_epoch:
                    bar.total = progress.epochs
                    bar.initial = progress.first_epoch - 1
                    bar.n = progress.epochs_done
                    bar.bar_format = BAR
                bar.set_postfix_str(progress.summary(), refresh=False)
                # Where the line cannot be overwritten, say only what is new.
                if sys.stderr.isatty() or (bar.n, bar.postfix) != said:
                    said = (bar.n, bar.postfix)
                    bar.refresh()
                if not running:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        process.wait()  # the training got the terminal's interrupt as well
        raise
    if process.returncode:
        print(last_lines(args.log, begin, 15), file=sys.stderr)
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


if __name__ == "__main__":
    main()
