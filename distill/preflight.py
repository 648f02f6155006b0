"""Check a recipe's run before it begins: options, configurations, the machine, and the data that are there already.

Every check yields problems, one line each, which names the option or file and a cure. All of them are reported
together, so that a run does not stop after hours at an option that was wrong from the start.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.checkpoints.load import build_network, checkpoint_path, read_config
from distill.configuration import (
    AugmentConf,
    ChunkConf,
    DistillConf,
    MaskConf,
    layer_map,
    read_conf,
    read_training_config,
    student_frame_ms,
    with_student,
)
from distill.errors import UserError
from distill.files import atomic_write, read_json

CHOICES = {
    "from_scratch": ("", "small", "medium"),
    "audio_format": ("flac", "wav", "flac.ark", "wav.ark"),
    "token_type": ("char", "bpe", "word", "phn"),
    "teacher_targets": ("stored", "online"),
    "target_dtype": ("float32", "float16", "compressed"),
    "stage2_teacher": ("teacher", "student_full", "both"),
    "scoring": ("plain", "gigaspeech"),
}
DECODERS = ("greedy", "beam", "wfst")
DURATIONS: dict[str, tuple[str, ...]] = {  # seconds, and the words that may stand instead
    "min_wav_duration": (), "max_wav_duration": (), "teacher_init_max_s": ("", "auto"),
}  # fmt: skip
FLAGS = ("check", "dry_run", "allow_pipes", "unlabelled", "resample", "teacher_tokens", "allow_bad_teacher", "no_kd")
LEAST = {  # whole numbers and their smallest values
    "stage": 1, "stop_stage": 1, "nbpe": 1, "ngram_order": 1, "lm_order": 1, "num_nodes": 1, "nj": 1, "threads": 1,
    "ngpu": 0, "seed": 0,
}  # fmt: skip
SECTIONS = {
    "distill_conf": DistillConf, "chunk_conf": ChunkConf, "augment_conf": AugmentConf, "mask_conf": MaskConf,
}  # fmt: skip
COMMON_KEYS = set(SECTIONS) | {
    "network", "network_conf", "optim", "optim_conf", "scheduler", "scheduler_conf", "max_epoch",
    "num_iters_per_epoch", "accum_grad", "grad_clip", "batch_type", "batch_bins", "num_workers", "log_interval",
    "freeze_param", "keep_nbest_models", "best_model_criterion", "patience", "seed", "use_amp",
    "use_matplotlib", "use_tensorboard",
}  # fmt: skip
# So many of the shortest utterances, or this share of a small corpus, are enough for a network to learn to align
FEWEST, SHORT_SHARE = 300, 0.3
Options = Mapping[str, str]


class Training(NamedTuple):
    """A training that is wanted: the option that names its configuration, the file, and its content."""

    option: str
    path: Path
    config: dict[str, Any]


def problems(options: Options) -> list[str]:
    """What is wrong with a run, one line each; without any, an empty list.

    Args:
        options: values of all options of run.sh by name, as text; also ``gpus`` of this machine and ``cuda_cmd``.
    """
    wrong = list(_values(options))
    if wrong:
        return wrong  # the other checks rely on these values
    wrong += _dependent(options)
    wrong += _files(options)
    wrong += _machine(options)
    trainings: list[Training] = []
    for option in wanted_trainings(options):
        try:
            trainings.append(read_training(options, option))
        except UserError as error:
            wrong.append(str(error))
    for training in trainings:
        wrong += _sections(training)
        wrong += _unknown_keys(training)
    wrong += _networks(options, trainings)
    wrong += _data(options)
    return list(dict.fromkeys(wrong))


def runs(options: Options, stage: int) -> bool:
    """Whether a stage is among those to be run."""
    return int(options["stage"]) <= stage <= int(options["stop_stage"])


def wanted_trainings(options: Options) -> list[str]:
    """Options that name the configurations of the trainings to be run."""
    names = []
    if runs(options, 7) and not options["teacher"]:
        names += ["teacher_init_config"] if options["teacher_init_config"] else []
        names += ["teacher_config"]
    if any(runs(options, stage) for stage in (8, 10)):
        names.append("student_full_config")
    if any(runs(options, stage) for stage in (8, 11)):
        names.append("student_stream_config")
    return names


def read_training(options: Options, option: str) -> Training:
    """Read the configuration that an option names, with the network of ``--student`` in a student's."""
    path = configuration = Path(options[option])
    try:
        config = read_training_config(path)
        if options["student"] and option.startswith("student_"):
            path = Path(options["student"])
            config = with_student(config, read_training_config(path))
    except KeyError:
        raise UserError(f"{path}: no network_conf; give a file such as conf/students/s5.yaml") from None
    return Training(option, configuration, config)


def _values(options: Options) -> Iterator[str]:
    """Options whose values are not of their kind."""
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            named = [choice for choice in choices if choice]
            yield f"--{name} {options[name]}: must be {', '.join(named[:-1])} or {named[-1]}"
    for name in FLAGS:
        if options[name] not in ("true", "false"):
            yield f"--{name} {options[name]}: must be true or false"
    for name, least in LEAST.items():
        if not options[name].isascii() or not options[name].isdigit() or int(options[name]) < least:
            yield f"--{name} {options[name]}: must be a whole number, at least {least}"
    for name, words in DURATIONS.items():
        if options[name] not in words and not _is_duration(options[name]):
            allowed = ["seconds above 0 such as 1.5", *filter(None, words)]
            yield f"--{name} {options[name]}: must be {' or '.join(allowed)}"
    for name in ("latencies", "fixed_chunks", "export_chunks"):
        for chunk in options[name].split():
            if not (chunk.isascii() and chunk.isdigit() and int(chunk) > 0) and (name, chunk) != ("latencies", "full"):
                yield f"--{name} {chunk}: must be milliseconds such as 480{' or full' if name == 'latencies' else ''}"
    for factor in options["speed_perturb_factors"].split():
        if not _is_duration(factor):
            yield f"--speed_perturb_factors {factor}: must be factors above 0, such as 0.9"
    for decoder in options["decoders"].split():
        if decoder not in DECODERS:
            yield f"--decoders {decoder}: must be any of greedy, beam and wfst"
    for name in ("test_sets", "latencies"):
        if not options[name].split():
            yield f"--{name}: is empty; give at least one"


def _is_duration(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _dependent(options: Options) -> Iterator[str]:
    """Options that do not go together."""
    lexicon, lang_dir, phones = options["lexicon"], options["lang_dir"], options["token_type"] == "phn"
    if phones and bool(lexicon) == bool(lang_dir):
        yield "--token_type phn: needs either --lexicon FILE or --lang_dir DIR"
    if phones and "beam" in options["decoders"].split():
        yield "--decoders beam: finds no words in phones; take wfst"
    if not phones and (lexicon or lang_dir):
        yield (
            '--lexicon, --lang_dir: need --token_type phn; for wfst\'s spellings give --decode_options "--lexicon FILE"'
        )
    if options["teacher_tokens"] == "true" and not (_is_hugging_face(options) and options["token_type"] == "char"):
        yield "--teacher_tokens true: needs --token_type char and a --teacher in Hugging Face's format"
    if options["unlabelled"] == "true" and not options["teacher"]:
        yield "--unlabelled true: needs a --teacher that is trained already"
    if float(options["min_wav_duration"]) >= float(options["max_wav_duration"]):
        yield f"--min_wav_duration {options['min_wav_duration']}: not below --max_wav_duration"
    if int(options["stage"]) > int(options["stop_stage"]):
        yield f"--stage {options['stage']}: after --stop_stage {options['stop_stage']}, so nothing is run"
    if options["teacher_init_max_s"] and not options["teacher_init_config"]:
        yield "--teacher_init_max_s: limits the first training of the teacher; give its --teacher_init_config"


def _is_hugging_face(options: Options) -> bool:
    teacher = options["teacher"]
    return bool(teacher) and not Path(teacher, "config.yaml").exists() and Path(teacher, "config.json").exists()


def _files(options: Options) -> Iterator[str]:
    """Files and directories that options name."""
    for name in ("lexicon", "ngram_lm", "lm"):
        if options[name] and not Path(options[name]).is_file():
            yield f"--{name} {options[name]}: not found; give a file that is there"
    if options["lang_dir"] and not Path(options["lang_dir"], "phones.txt").is_file():
        yield f"--lang_dir {options['lang_dir']}: has no phones.txt; give a lang directory as Kaldi makes it"
    teacher = options["teacher"]
    if teacher and not Path(teacher).is_dir():
        yield f"--teacher {teacher}: not found; give the directory of a trained teacher"
    elif teacher and not _is_hugging_face(options):
        try:
            read_config(teacher)
            checkpoint_path(teacher)
        except UserError as error:
            yield f"--teacher: {error}"
    if options["targets"] and runs(options, 10):
        for name in (options["train_set"] + ("_sp" if options["speed_perturb_factors"] else ""), options["valid_set"]):
            manifest = Path(options["targets"], name, "manifest.json")
            if not manifest.is_file():
                yield f"--targets {options['targets']}: {manifest} not found; give a directory that stage 8 filled"


def _machine(options: Options) -> Iterator[str]:
    """Programs and GPUs that the wanted stages need."""
    if options["speed_perturb_factors"] and runs(options, 2) and shutil.which("sox") is None:
        yield "--speed_perturb_factors: needs sox, which is not installed; apt install sox"
    gpus, on_this_machine = options["gpus"], options["cuda_cmd"].split()[:1] == ["run.pl"]
    computes = options["dry_run"] == "false" and any(runs(options, stage) for stage in (7, 8, 10, 11, 12))
    if on_this_machine and computes and int(options["ngpu"]) > int(gpus):
        yield (
            f"--ngpu {options['ngpu']}: this machine has {gpus} GPUs; give --ngpu {gpus}, or choose a cluster in cmd.sh"
        )


def _sections(training: Training) -> Iterator[str]:
    """Sections of a configuration whose keys or values are wrong."""
    for section, kind in SECTIONS.items():
        values = training.config.get(section)
        if values is not None and not isinstance(values, dict):
            yield f"{training.path}: {section}: must be a mapping"
            continue
        try:
            read_conf(kind, section, values)
        except UserError as error:
            yield f"{training.path}: {error}"


def _unknown_keys(training: Training) -> Iterator[str]:
    """Keys that neither ESPnet's trainer nor this toolkit has."""
    keys = training.config.keys() - COMMON_KEYS
    if not keys:
        return  # the parser, which takes seconds to import, need not be asked
    from distill.training.distill_task import DistillTask

    known = {action.dest for action in DistillTask.get_parser()._actions}
    for key in sorted(keys - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        yield f"{training.path}: {key}: no such key in a training's configuration; did you mean {near[0]}?"


def _networks(options: Options, trainings: Sequence[Training]) -> Iterator[str]:
    """Networks that cannot be built, and students that do not fit their teacher or the chunk lengths.

    Building takes seconds, most of them for imports, so the networks that could be built are noted in the experiment. A
    dry run writes nothing, and plans for a pretrained teacher that is not there yet.
    """
    teacher, dry_run = teacher_layers(options), options["dry_run"] == "true"
    note = Path(options["expdir"], ".stages", "networks")
    built = note.read_text(encoding="utf-8").split() if note.is_file() else []
    for training in trainings:
        network = training.config.get("network_conf") or {}
        named = network.get("config") if training.config.get("network") == "teacher" else None
        if isinstance(named, str):
            if not (dry_run or named.startswith("hf://") or Path(named, "config.json").is_file()):
                yield (
                    f"{training.path}: network_conf.config: {named}/config.json not found; put a pretrained model "
                    "there, give a trained --teacher, or a --teacher_config that describes a network"
                )
            continue
        kind = json.dumps([training.config.get("network"), network], sort_keys=True, default=str)
        checksum = hashlib.sha256(kind.encode()).hexdigest()
        if checksum not in built:
            try:
                _build(training.config)
            except UserError as error:
                yield f"{training.path}: {error}"
                continue
            built.append(checksum)
            if not dry_run:
                with atomic_write(note) as stream:
                    stream.write("\n".join(built))
        if training.config.get("network") != "student":
            continue
        conf = training.config.get("distill_conf") or {}
        if teacher is not None and conf.get("alpha", 0.8) < 1:
            yield from _layers(options, training, network, conf, teacher)
        if training.option == "student_stream_config":
            yield from _chunks(options, training, network)


def _build(config: Mapping[str, Any]) -> None:
    """Build the network of a configuration without memory for its weights."""
    import torch

    with torch.device("meta"):
        build_network(config, 10)


def _layers(
    options: Options, training: Training, network: Mapping[str, Any], conf: Mapping[str, Any], teacher: int
) -> Iterator[str]:
    """A map of layers that the teacher does not have, or a student with more layers than the teacher."""
    source = f"--student {options['student']}" if options["student"] else str(training.path)
    chosen = conf.get("layer_map")
    if chosen is not None:
        if len(chosen) != network.get("layers") or not all(1 <= layer <= teacher for layer in chosen):
            yield (
                f"{training.path}: distill_conf.layer_map: must name one of the teacher's {teacher} layers for each of "
                f"the student's {network.get('layers')}"
            )
        return
    try:
        layer_map(int(network.get("layers", 0)), teacher)
    except UserError:
        cure = '--student "" takes the students of the two configurations' if options["student"] else "take fewer"
        yield (
            f"{source}: the student has {network['layers']} layers, its teacher {teacher}; {cure}, or give "
            f"distill_conf.layer_map in {training.path}"
        )


def _chunks(options: Options, training: Training, network: Mapping[str, Any]) -> Iterator[str]:
    """Chunk lengths that are no multiple of the student's frames."""
    frame_ms = student_frame_ms(network)[1]
    for name in ("latencies", "fixed_chunks", "export_chunks"):
        for chunk in options[name].split():
            if chunk != "full" and int(chunk) % frame_ms:
                yield f"--{name} {chunk}: not a multiple of {frame_ms} ms, the frames of {training.path}"


def teacher_layers(options: Options) -> int | None:
    """Number of the teacher's layers, as far as it is known before anything has run."""
    try:
        if not options["teacher"]:
            config = read_training_config(Path(options["teacher_config"]))
        elif _is_hugging_face(options):
            return int(read_json(Path(options["teacher"], "config.json"), "")["num_hidden_layers"])
        else:
            config = read_config(options["teacher"])
        network = config.get("network_conf") or {}
        named = network.get("config", network)
        if isinstance(named, str):
            named = read_json(Path(named, "config.json"), "")
        return int(named.get("num_hidden_layers") or named["layers"])
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what cannot be read is reported by another check


def _data(options: Options) -> Iterator[str]:
    """Data directories that are missing though their stage is not run, and sets of which too little is left."""
    sets = [options["train_set"], options["valid_set"], *options["test_sets"].split()]
    if not runs(options, 1) and int(options["stage"]) <= 4:
        for name in sets:
            if not Path("data", name, "wav.scp").is_file():
                yield f"data/{name}/wav.scp: not found; run stage 1 first"
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


def report(options: Options, write: Callable[[str], None] = print) -> None:
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
