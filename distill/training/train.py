"""The process of a training: ESPnet without its type checks, memory kept between steps, no search for garbage."""

from __future__ import annotations

import ctypes
import gc

from distill.errors import UserError


def keep_memory() -> None:
    """Let the C library keep memory that tensors give back, up to 2 GB, instead of returning it at every step.

    Fresh pages are handed out and cleared one by one: on a CPU that made a step of a small student an eighth longer.
    Settings of glibc (mallopt); other C libraries go on as they are.
    """
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def skip_type_checks() -> None:
    """Leave ESPnet's run-time checks of argument types out (typeguard does under python -O, too).

    They are compiled anew whenever ESPnet is loaded, a third of the time it takes a training to start.
    """
    import typeguard

    typeguard.typechecked = lambda function: function  # type: ignore[assignment]


def train(cmd: list[str] | None = None) -> None:
    """Train as ESPnet's command line ``cmd`` says, None for the process's own.

    Raises:
        UserError: a checkpoint holds more than tensors and numbers, so that loading it could run code.
    """
    skip_type_checks()
    # ESPnet, torch and what they import are a million objects that never become garbage: the collector would look
    # through them again and again, now and in training.
    gc.disable()
    from espnet2.torch_utils.safe_torch_load import UnsafeLoadRefusedError

    from distill.training.distill_task import DistillTask

    gc.freeze()
    gc.enable()
    keep_memory()
    try:
        DistillTask.main(cmd=cmd)
    except UnsafeLoadRefusedError as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"{what}; loading it could run code; remove it to train without it") from error
