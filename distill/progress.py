"""Run a training with its output in a log file, and show its progress in one line on the terminal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from distill.errors import UserError

EPOCH = re.compile(r"(\d+)/(\d+)epoch started")
BATCHES = re.compile(r"\[train\] mini-batch sizes summary: N-batch=(\d+)")
PER_EPOCH = re.compile(r"^num_iters_per_epoch: (\d+)", re.MULTILINE)
STEP = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch: (.*)")
BEFORE = re.compile(r"INFO: (CNN to log-mel: step \d+ of \d+)")  # what precedes the first epoch
RESULT = re.compile(r"(\d+)epoch results: (.*)")
# Of the warnings only those of this package's own modules
WARNING = re.compile(r"\((?:resume|distill_task|distill_model|loss|teacher_targets):\d+\) WARNING: (.*)")
# ESPnet leaves out a comma here and there ("iter_time=0.004loss=1.2"); loss_scale is that of mixed precision.
VALUE = re.compile(r"(?<![a-z_])(loss(?!_scale)(?:_[a-z]+)?|ter)=(-?[0-9.]+(?:e[-+]?[0-9]+)?|nan|-?inf)")
BAR = "{desc}: epoch {n:.1f}/{total} {percentage:3.0f}% [{elapsed}, {remaining} left{postfix}]"
POLL_SECONDS = 0.5
VALIDATING = 0.94  # share of an epoch that is shown as done while it is validated and saved
ONLY_BLANKS = 0.95  # token errors on the validation set from which a network puts out next to nothing


class Progress:
    """State of a training as its log tells it: epoch, batch, losses."""

    def __init__(self, max_epoch: int | None) -> None:
        self.max_epoch = max_epoch
        self.epoch = 0
        self.first_epoch = 0
        self.batch = 0
        self.batches = 0
        self.before = "starting"
        self.shown: dict[str, str] = {}
        self._doubted = False

    def read(self, line: str) -> None:
        """Update the state by one line of the trainer's log."""
        if match := EPOCH.search(line):
            self.epoch, self.batch = int(match[1]), 0
            self.first_epoch = self.first_epoch or self.epoch
            self.max_epoch = int(match[2])
        elif match := BATCHES.search(line):
            self.batches = int(match[1])
        elif match := BEFORE.search(line):
            self.before = match[1]
        elif match := STEP.search(line):
            self.batch = int(match[2])
            self.shown.update({f"train {k}": v for k, v in VALUE.findall(match[3])})
        elif match := RESULT.search(line):
            self.epoch, self.batch = int(match[1]) + 1, 0
            for section in match[2].split("["):
                name, _, values = section.partition("] ")
                if name in ("train", "valid"):
                    self.shown.update({f"{name} {k}": v for k, v in VALUE.findall(values)})

    def doubt(self) -> str | None:
        """A warning, once, if half of the epochs are over and the network still puts out next to nothing but blanks."""
        rate = float(self.shown.get("valid ter", "0"))
        if (
            self._doubted
            or self.batch
            or not self.max_epoch
            or self.epochs_done < max(min(2, self.max_epoch), self.max_epoch / 2)
        ):
            return None
        if not rate >= ONLY_BLANKS:
            return None
        self._doubted = True
        what = "next to nothing but blanks" if rate <= 1 else "anything"
        return (
            f"{100 * rate:.0f} % token errors on the validation set after {self.epochs_done:.0f} of {self.max_epoch} "
            f"epochs: the network puts out {what}; take more epochs or a lower learning rate, and for a teacher "
            " shorter utterances at first (--teacher_init_max_s)"
        )

    @property
    def epochs_done(self) -> float:
        """Epochs finished, with the finished share of the running one, which is less than 1 until it is validated."""
        if not self.epoch:
            return 0.0
        return self.epoch - 1 + (min(VALIDATING, self.batch / self.batches) if self.batches else 0.0)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.max_epoch or 0

    def summary(self) -> str:
        """Token error rate and losses by name, the former and those of the validation set first."""
        order = sorted(self.shown, key=lambda name: (name != "valid ter", not name.startswith("valid"), name))
        return ", ".join(f"{name} {self.shown[name]}" for name in order)


def iterations_per_epoch(directory: Path) -> int | None:
    """The training's --num_iters_per_epoch, if it limits an epoch to fewer batches than the data make."""
    config = directory / "config.yaml"
    match = PER_EPOCH.search(config.read_text(encoding="utf-8")) if config.is_file() else None
    return int(match[1]) if match else None


def last_lines(log: Path, begin: int, count: int) -> str:
    """The last ``count`` lines of a log after byte ``begin``; only the error line if the training ended with one."""
    with open(log, "rb") as stream:
        stream.seek(begin)
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[-1].startswith("error: "):
        return lines[-1]
    return "\n".join([f"error: the training failed; the end of {log}:", *lines[-count:]])


def follow(log: Path, begin: int, progress: Progress, running: Callable[[], bool]) -> None:
    """Show a bar on stderr while a training writes its log, and the warnings of this package's modules above it.

    Args:
        log: the log file; a bar is named after its directory.
        begin: byte from which on the log belongs to this training.
        progress: state before the first line.
        running: whether the training still runs.
    """
    bar = tqdm(
        total=progress.max_epoch, desc=log.parent.name, bar_format="{desc}: starting [{elapsed}]", dynamic_ncols=True
    )
    with open(log, encoding="utf-8", errors="replace") as lines, bar:
        lines.seek(begin)
        line, shown, last_round = "", None, False
        while not last_round:
            last_round = not running()  # what it wrote at its end is still read
            for piece in lines:
                line += piece
                if not line.endswith("\n"):
                    continue
                progress.read(line)
                if warning := WARNING.search(line):
                    bar.write(f"warning: {warning[1]}", file=sys.stderr)
                if RESULT.search(line) and (doubt := progress.doubt()):
                    bar.write(f"warning: {log.parent.name}: {doubt}", file=sys.stderr)
                if BATCHES.search(line):
                    progress.batches = iterations_per_epoch(log.parent) or progress.batches
                line = ""
            if progress.epochs and progress.first_epoch:
                bar.total, bar.initial = progress.epochs, progress.first_epoch - 1
                bar.n, bar.bar_format = progress.epochs_done, BAR
            else:
                bar.bar_format = "{desc}: " + progress.before + " [{elapsed}]"
            bar.set_postfix_str(progress.summary(), refresh=False)
            # Where a line cannot be overwritten, only a changed one is written.
            if sys.stderr.isatty() or (bar.n, bar.postfix, bar.bar_format) != shown:
                shown = (bar.n, bar.postfix, bar.bar_format)
                bar.refresh()
            if not last_round:
                time.sleep(POLL_SECONDS)


ENDED_BY = {  # exit statuses of programs that a signal has ended
    128 + signal.SIGHUP: "ended by SIGHUP, as its terminal was closed",
    128 + signal.SIGTERM: "ended by SIGTERM",
    128 + signal.SIGKILL: "killed, perhaps for want of memory",
}


def watch(command: list[str], log: Path, max_epoch: int | None = None) -> int:
    """Run a training, append its output to a log file and show its progress; if it fails, print the end of the log.

    Args:
        command: the training's program and arguments.
        log: the log file; its directory is made if it is not there.
        max_epoch: epochs in all, None: what the log says.

    Returns:
        the exit status; 128 + the signal if the training was killed by one.

    Raises:
        UserError: the program cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        begin = output.tell()
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be run ({error.strerror})") from error
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        follow(log, begin, Progress(max_epoch), lambda: process.poll() is None)
    except KeyboardInterrupt:
        process.wait()  # the training got the terminal's interrupt as well
        print(f"\n{log}: interrupted; the same command goes on from there", file=sys.stderr)
        raise
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if status in ENDED_BY:
        print(
            f"error: {log}: the training was {ENDED_BY[status]}; the same command goes on from there", file=sys.stderr
        )
    elif status:
        print(last_lines(log, begin, 15), file=sys.stderr)
    return status
