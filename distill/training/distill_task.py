"""Training of teachers and students with ESPnet's own trainer and command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.tasks.abs_task import IteratorOptions
from espnet2.tasks.asr import ASRTask, preprocessor_choices
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.dataset import AbsDataset
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool, str_or_none

from distill.audio import read_audio, read_wav_scp
from distill.checkpoints.device import multiplies_bfloat16
from distill.checkpoints.load import build_network, load_criterion, load_network, load_weights, read_config
from distill.checkpoints.resume import save_whole, usable_checkpoint
from distill.configuration import AugmentConf, ChunkConf, DistillConf, MaskConf, for_processes, read_conf
from distill.data.tokens import TextEncoder
from distill.errors import UserError
from distill.files import sha256
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.targets.checks import check_manifest
from distill.targets.codebooks import Codebooks
from distill.targets.store import (
    CODEBOOKS,
    StoredTargets,
    hidden_stream,
    read_manifest,
    read_targets,
    read_two_columns,
)
from distill.training import shard_batches
from distill.training.cnn_from_log_mel import train_cnn_on_log_mel
from distill.training.distill_model import DistillModel
from distill.training.teacher_targets import StoredFormat
from distill.training.within_epoch import DistillTrainer

MAX_TEACHER_LAYERS = 99
STREAM = "teacher_"  # beginning of the names of data streams of stored targets
MASK = "encoder.masked_spec_embed"  # of a teacher with mask_time_prob or mask_feature_prob above 0


class DistillTask(ASRTask):
    """ESPnet's ASR task with a wav2vec 2.0 teacher or a student in place of its encoder-decoder.

    Tokenizer, preprocessor, collation, sampling, trainer and their options are ESPnet's. The ones added here are in
    :meth:`add_task_arguments`; their keys are also those of the YAML configuration.
    """

    class_choices_list = [preprocessor_choices]
    trainer = DistillTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's ASR options, with the model's own in place of ESPnet's."""
        # ESPnet's --init chooses a random initialisation; here it names a trained network.
        parser.conflict_handler = "resolve"
        super().add_task_arguments(parser)
        group = parser.add_argument_group("Distillation")
        group.add_argument("--network", choices=("teacher", "student"), default="student", help="what is trained")
        group.add_argument("--network_conf", action=NestedDictAction, default={}, help="its size, see conf/")
        group.add_argument("--teacher", type=str_or_none, default=None, help="directory of a trained teacher")
        group.add_argument(
            "--second_teacher", type=str_or_none, default=None, help="directory of another, computed in the trainer"
        )
        group.add_argument(
            "--teacher_targets",
            choices=("stored", "online"),
            default="online",
            help="read the teacher's outputs, or compute them in the trainer",
        )
        for part in ("train", "valid"):
            group.add_argument(
                f"--{part}_targets", type=str_or_none, default=None, help=f"directory of the {part} set's stored ones"
            )
        group.add_argument(
            "--init", type=str_or_none, default=None, help="directory of a training to take weights from"
        )
        group.add_argument(
            "--cnn_log_mel_steps",
            type=int,
            default=0,
            help="batches on which the CNN of a new teacher is first trained to put out log-mel features; 0: none",
        )
        group.add_argument(
            "--distill_conf", action=NestedDictAction, default={}, help="weights and targets of the loss"
        )
        group.add_argument(
            "--batches_per_checkpoint",
            type=int,
            default=2000,
            help="batches after which a checkpoint is written within an epoch; 0: only at its end",
        )
        group.add_argument(
            "--cpu_bfloat16",
            type=str2bool,
            default=False,
            help="compute networks in bfloat16 on a CPU that multiplies in it (AVX512-BF16, AMX), in float32 on others",
        )
        group.add_argument("--chunk_conf", action=NestedDictAction, default=None, help="attention chunks of a student")
        group.add_argument("--augment_conf", action=NestedDictAction, default=None, help="gain and noise in training")
        group.add_argument("--mask_conf", action=NestedDictAction, default=None, help="masks of features in training")
        group.add_argument(
            "--model_conf",
            action=NestedDictAction,
            # collect_stats then needs no model, and so neither teacher nor graph
            default={"extract_feats_in_collect_stats": False},
            help="for ESPnet's own use",
        )
        parser.set_defaults(
            best_model_criterion=[("valid", "loss", "min")],
            keep_nbest_models=[5],
            num_att_plot=0,  # there are no attention weights to plot
            optim="adamw",
            use_amp=True,  # on a GPU; ESPnet then computes in bfloat16
        )

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        hidden = tuple(f"teacher_{hidden_stream(layer)}" for layer in range(1, MAX_TEACHER_LAYERS + 1))
        return (*hidden, "teacher_logits", "teacher_posterior_ids", "teacher_posterior", "teacher_nbest")

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> AbsESPnetModel:
        """The model that ``args`` describe.

        ``args`` become self-contained (token list, sizes of the network, streams of targets), as config.yaml is written
        from them.
        """
        if isinstance(args.token_list, str):
            path = Path(args.token_list)
            if not path.is_file():
                raise UserError(f"{path}: token list not found; make it first (stage 5)")
            args.token_list = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        conf = read_conf(DistillConf, "distill_conf", args.distill_conf or {})
        chunk = read_conf(ChunkConf, "chunk_conf", args.chunk_conf)
        assert conf is not None
        add_target_streams(args)
        if args.second_teacher is not None and args.teacher is None:
            raise UserError("--second_teacher: there is no first one; give --teacher")
        if args.network == "teacher" and (args.teacher is not None or chunk is not None):
            raise UserError("network: teacher is trained without --teacher and chunk_conf; did you mean student?")
        if args.cnn_log_mel_steps > 0:
            new = args.init is None and isinstance((args.network_conf or {}).get("config"), dict)
            if args.network != "teacher" or not new:
                raise UserError("cnn_log_mel_steps: is for a teacher that begins with random weights; leave it out")
        front_end = (args.network_conf or {}).get("front_end_conf") or {}
        if front_end.get("freeze") and args.teacher is None and args.init is None:
            logging.warning("Nothing to copy the front end from, so front_end_conf.freeze is not applied")
            args.network_conf = {**args.network_conf, "front_end_conf": {**front_end, "freeze": False}}
        network = build_network(vars(args), len(args.token_list))
        cpu_bfloat16 = args.cpu_bfloat16 and args.ngpu == 0 and multiplies_bfloat16()
        if args.cpu_bfloat16 and args.ngpu == 0 and not cpu_bfloat16:
            logging.info("cpu_bfloat16: this CPU has no instructions for it, float32 is used")
        if cpu_bfloat16 and isinstance(network, Teacher):
            network.unfuse_attention()
        if not isinstance(network, Student) and not isinstance(args.network_conf["config"], dict):
            # From now on the checkpoint holds the weights, and the Hugging Face directory is no longer needed.
            args.network_conf = {**args.network_conf, "config": network.config.to_diff_dict()}
        return DistillModel(
            network,
            args.token_list,
            conf,
            teacher=args.teacher,
            stored=stored_format(args),
            second_teacher=args.second_teacher,
            chunk=chunk,
            augmentation=read_conf(AugmentConf, "augment_conf", args.augment_conf),
            masking=read_conf(MaskConf, "mask_conf", args.mask_conf),
            encode=encoder_of_text(args),
            cpu_bfloat16=cpu_bfloat16,
        )

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """ESPnet's training in one process of several or the only one."""
        with save_whole():
            super().main_worker(args)

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """ESPnet's optimisers, after the weights are initialised and ``args`` fitted to the processes there are.

        Here, as only trainings call this method, and what is built after it is built from ``args``.
        """
        assert isinstance(model, DistillModel)
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shared = for_processes(vars(args), processes)
        for name in ("batch_bins", "accum_grad", "num_iters_per_epoch"):
            setattr(args, name, shared[name])
        if processes > 1 and args.batch_type == "numel":
            logging.info(
                f"Batches of {args.batch_bins // processes} padded samples in each of {processes} processes, "
                f"{args.accum_grad} of them an update of the weights"
            )
        args.use_amp = args.use_amp and args.ngpu > 0
        # Of a student of which only hidden layers are compared, the prediction layer has no gradient.
        args.unused_parameters = args.unused_parameters or (model.conf.alpha == 0 and model.conf.weight_ctc == 0)
        output_dir = Path(args.output_dir)
        first_process = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if not (args.resume and usable_checkpoint(output_dir, first_process)):
            cls.initialise(args, model)
        return super().build_optimizers(args, model)

    @classmethod
    def initialise(cls, args: argparse.Namespace, model: DistillModel) -> None:
        """Initial weights, and a log of where they are from.

        ``--init`` is a network of the same kind and sizes: all of its weights are taken, and the trained projections of
        hidden layers where they fit. A student's tokens may be others if it has at least half of this training's: of
        the prediction layer, those that both have are taken. Without it, or where ``--init`` is a wav2vec 2.0 teacher
        and the network a student, what fits is taken from the teacher: CNN and prediction layer. The CNN of a new
        teacher is trained on log-mel features if ``cnn_log_mel_steps`` is above 0.
        """
        if args.cnn_log_mel_steps > 0:
            path = next(path for path, name, _ in args.train_data_path_and_name_and_type if name == "speech")
            assert isinstance(model.network, Teacher)
            train_cnn_on_log_mel(
                model.network,
                list(read_wav_scp(Path(path)).values()),
                args.cnn_log_mel_steps,
                model.augmentation,
                model.cpu_bfloat16,
            )
        if args.init is None and (args.teacher is None or not isinstance(model.network, Student)):
            return
        origin = args.init or args.teacher
        source = load_network(origin)
        same_tokens = source.token_list == args.token_list
        if not same_tokens and not isinstance(model.network, Student):
            raise UserError(f"{origin}: its token list is not this training's; use the same tokens")
        if isinstance(model.network, Student) and isinstance(source.network, Teacher):
            level = audio_level(args) if source.network.normalize else None
            report = model.network.init_from_teacher(source.network, level, same_tokens)
            frozen = not any(parameter.requires_grad for parameter in model.network.front_end.parameters())
            if frozen and "not copied" in report[0]:
                raise UserError(
                    f"network_conf.front_end_conf.freeze: nothing to freeze, the {report[0]} ({origin}); take "
                    "freeze: false, or a student with a front end of its own, such as conf/students/s5.yaml"
                )
            for line in report:
                logging.info(f"Initialised from {origin}: {line}")
        elif args.init is None:
            logging.info(f"{origin} is a student: none of its weights are copied without --init")
        else:
            weights = fitted_mask(source.network.state_dict(), model.network.state_dict())
            if not same_tokens:
                shared = take_tokens(weights, source.token_list, model.network.state_dict(), args.token_list)
                has = f"{origin}: has {shared} of this training's {len(args.token_list)} tokens"
                if 2 * shared < len(args.token_list):
                    raise UserError(f"{has}; begin with a student of at least half of them, or without --init")
                logging.info(has)
            load_weights(model.network, weights, origin)
            logging.info(f"Initialised all {len(weights)} tensors of the network from {origin}")
            kept = take_fitting(model.criterion, load_criterion(origin))
            if kept:
                logging.info(f"Initialised {kept} tensors of the projections of hidden layers from {origin}")

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> AbsIterFactory:
        """ESPnet's batches; of a training with large stored targets, batches that read them shard by shard."""
        targets = next((p for p, name, _ in iter_options.data_path_and_name_and_type if name == "teacher_logits"), None)
        if targets is None or not iter_options.train or iter_options.batch_type != "numel":
            return super().build_sequence_iter_factory(args, iter_options, mode)
        stored = StoredTargets(targets)
        if stored.size() < shard_batches.LARGE:
            return super().build_sequence_iter_factory(args, iter_options, mode)
        rank, processes = 0, 1
        if iter_options.distributed:
            rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        lengths = {u: int(n.split(",")[0]) for u, n in read_two_columns(iter_options.shape_files[0]).items()}
        check_keys(targets, lengths, stored.rows)
        numbers = {utterance: int(stored.shard[stored.rows[utterance]]) for utterance in lengths}
        least = max(processes, args.min_batch_size)
        groups = shard_batches.batches_by_group(lengths, numbers, iter_options.batch_bins, least)
        if small := [batch for batches in groups for batch in batches if len(batch) < processes]:
            raise UserError(
                f"{iter_options.shape_files[0]}: {small[0][0]} is in a batch of less than {processes} utterances"
            )
        groups = [[batch[rank::processes] for batch in batches] for batches in groups]
        batches = shard_batches.ShardBatches(groups)
        logging.info(f"[{mode}] {len(batches)} batches by shard of the stored targets")
        return SequenceIterFactory(
            dataset=cls.build_dataset(args, iter_options, {u for batch in batches for u in batch}),
            batches=batches,
            seed=args.seed,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def build_dataset(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, keys_to_load: Collection[str] | None = None
    ) -> AbsDataset:
        """ESPnet's dataset, after checks of the data files.

        Without them a missing utterance would be a bare KeyError in a worker, and outdated targets would go unnoticed.
        """
        entries = iter_options.data_path_and_name_and_type
        paths = {name: path for path, name, _ in entries}
        targets = {name: Path(path) for name, path in paths.items() if name.startswith(STREAM)}
        stored = {directory: StoredTargets(directory) for directory in sorted(set(targets.values()))}
        if args.teacher is not None and args.teacher_targets == "stored":
            graph = (args.distill_conf or {}).get("graph")
            on_first_process(
                lambda: [check_manifest(of_set, args.teacher, paths["speech"], graph) for of_set in stored.values()]
            )
        keys = keys_to_load or ()
        for name, path in paths.items():
            if name not in targets:
                check_keys(path, keys, present_in(path, name))
        # ESPnet's own reader would hold a table of each stream, and takes 7 times as long for compressed matrices.
        others = [entry for entry in entries if entry[1] not in targets]
        dataset = super().build_dataset(args, replace(iter_options, data_path_and_name_and_type=others), keys_to_load)
        for of_set in stored.values():
            of_set.read_ahead = iter_options.train and of_set.size() >= shard_batches.LARGE
        for name, directory in targets.items():
            check_keys(directory, keys, stored[directory].rows)
            dataset.loader_dict[name] = read_targets(directory, name.removeprefix(STREAM), stored[directory])
            dataset.debug_info[name] = str(directory), "kaldi_ark"
        return dataset


def add_target_streams(args: argparse.Namespace) -> None:
    """Make a data stream of every stream of --train_targets and --valid_targets, named by directory and stream.

    Raises:
        UserError: there are no targets, or of another layout.
    """
    for part in ("train", "valid"):
        directory, option = getattr(args, f"{part}_targets"), f"{part}_data_path_and_name_and_type"
        if directory is not None:
            entries = [entry for entry in getattr(args, option) if not entry[1].startswith(STREAM)]
            streams = read_manifest(directory)["streams"]
            setattr(args, option, entries + [(directory, f"{STREAM}{name}", "kaldi_ark") for name in streams])


def encoder_of_text(args: argparse.Namespace) -> TextEncoder | None:
    """What makes token ids of text, if a teacher has other tokens; None for phones, which its text does not spell."""
    teachers = [directory for directory in (args.teacher, args.second_teacher) if directory is not None]
    if args.token_type == "phn" or all(read_config(path)["token_list"] == args.token_list for path in teachers):
        return None
    return TextEncoder(args.token_list, args.token_type, args.bpemodel)


def on_first_process(check: Callable[[], object]) -> None:
    """Run a check in the first process of a distributed training; all of them fail if it does.

    Raises:
        UserError: that of the check.
    """
    distributed = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    problem: list[str | None] = [None]
    if not distributed or torch.distributed.get_rank() == 0:
        try:
            check()
        except UserError as error:
            problem = [str(error)]
    if distributed:
        torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise UserError(problem[0])


def stored_format(args: argparse.Namespace) -> StoredFormat | None:
    """How the targets are stored; None: the teacher is online.

    Raises:
        UserError: there are none, or training and validation sets have other codebooks than the file beside them.
    """
    if args.teacher is None or args.teacher_targets != "stored":
        return None
    streams = [*args.train_data_path_and_name_and_type, *args.valid_data_path_and_name_and_type]
    directories = [Path(path) for path, name, _ in streams if name == "teacher_logits"]
    if not directories:
        raise UserError("--teacher_targets stored: --train_targets is missing; extract targets (stage 8)")
    manifests = [read_manifest(directory) for directory in directories]
    hidden_ms, codebooks = manifests[0].get("hidden_ms"), manifests[0].get("codebooks")
    if not isinstance(hidden_ms, int):
        raise UserError(f"{directories[0]}/manifest.json: has no hidden_ms; extract targets again (stage 8)")
    for directory, manifest in zip(directories, manifests, strict=True):
        path = directory.with_name(CODEBOOKS)
        if manifest.get("codebooks") != codebooks or (codebooks and sha256_or_none(path) != codebooks):
            raise UserError(f"{directory}: not made with the codebooks {path}; extract targets again (stage 8)")
    return StoredFormat(hidden_ms, Codebooks.load(directories[0].with_name(CODEBOOKS)) if codebooks else None)


def sha256_or_none(path: Path) -> str | None:
    """Checksum of a file, None if there is none."""
    return sha256(path) if path.is_file() else None


def audio_level(args: argparse.Namespace, most: int = 100) -> float:
    """Root mean square of the training audio, the geometric mean over ``most`` utterances spread over the corpus."""
    path = next(path for path, name, _ in args.train_data_path_and_name_and_type if name == "speech")
    files = list(read_wav_scp(Path(path)).values())
    levels = [float(np.square(read_audio(file)).mean()) for file in files[:: max(1, len(files) // most)]]
    return float(np.exp(np.mean(np.log(np.maximum(levels, 1e-10))) / 2))


def fitted_mask(weights: dict[str, torch.Tensor], of_network: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with the vector of masked frames if the network has one; a teacher that masks nothing has none."""
    if MASK in of_network:
        return {MASK: of_network[MASK], **weights}
    return {name: weight for name, weight in weights.items() if name != MASK}


def take_tokens(
    weights: dict[str, torch.Tensor],
    tokens: Sequence[str],
    of_network: Mapping[str, torch.Tensor],
    network_tokens: Sequence[str],
) -> int:
    """Rearrange the prediction layer in a student's weights for a network with other tokens, in place.

    Rows of tokens that only the network has are the network's. A row for each token is repeated for every logit frame
    of an encoder frame: output.weight is (k · V, width), and output.bias (k · V,).

    Returns:
        how many of the network's tokens the weights have.
    """
    shared = [token for token in network_tokens if token in tokens]
    there, here = ([names.index(token) for token in shared] for names in (list(tokens), list(network_tokens)))
    for name in ("output.weight", "output.bias"):
        rows = weights[name].unflatten(0, (-1, len(tokens)))  # (k, V, width) or (k, V)
        new = of_network[name].clone().unflatten(0, (-1, len(network_tokens)))
        if rows.shape[::2] == new.shape[::2]:  # otherwise it is refused when it is loaded
            new[:, here] = rows[:, there]
            weights[name] = new.flatten(0, 1)
    return len(shared)


def take_fitting(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> int:
    """Copy the tensors that a module has under the same name and in the same shape; their number."""
    state = module.state_dict()
    fitting = {name: w for name, w in weights.items() if name in state and state[name].shape == w.shape}
    module.load_state_dict(state | fitting)
    return len(fitting)


def present_in(path: str | Path, name: str) -> set[str]:
    """Utterances of a Kaldi file of two columns."""
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; it should hold the stream {name}")
    with open(path, encoding="utf-8") as stream:
        return {line.split(maxsplit=1)[0] for line in stream if line.strip()}


def check_keys(path: str | Path, keys: Collection[str], present: Collection[str]) -> None:
    """Refuse a file that lacks one of the utterances to train on."""
    missing = sorted(key for key in keys if key not in present)
    if missing:
        raise UserError(f"{path}: lacks {len(missing)} of {len(keys)} utterances, such as {missing[0]}; make it again")
