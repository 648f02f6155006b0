"""Checks of a recipe's run before it begins: options, configurations, the machine, and the data that are there already.

Every check yields problems, one line each, which names the option or file and a cure. All of them are reported
together, so that a run does not stop after hours at an option that was wrong from the start.
"""

from __future__ import annotations

from distill.errors import UserError
from distill.preflight.configurations import Training, check_trainings, read_training, wanted_trainings
from distill.preflight.lengths import check_lengths, report_lengths
from distill.preflight.options import SOUND, Options, check_files, check_machine, check_together, check_values

__all__ = ["problems", "report_lengths"]


def problems(options: Options) -> list[str]:
    """What is wrong with a run, one line each; without any, an empty list.

    Args:
        options: values of all options of run.sh by name, as text; also ``gpus`` of this machine and ``cuda_cmd``.
    """
    found = list(check_values(options))
    wrong = [message for _, message in found]
    if {"stage", "stop_stage"} & {name for name, _ in found}:
        return wrong  # what else is to be checked depends on them
    options = {**options, **{name: SOUND[name] for name, _ in found}}
    wrong += [*check_together(options), *check_files(options), *check_machine(options)]
    trainings: list[Training] = []
    for option in wanted_trainings(options):
        try:
            trainings.append(read_training(options, option))
        except UserError as error:
            wrong.append(str(error))
    wrong += [*check_trainings(options, trainings), *check_lengths(options)]
    return list(dict.fromkeys(wrong))
