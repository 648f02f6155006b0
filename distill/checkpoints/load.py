"""Load a teacher or student from a training's directory or a packed model, without ESPnet or the training's data.

torch is imported only by functions that load weights, so that others do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.checkpoints.archive import model_directory
from distill.checkpoints.schema import StudentConf, TeacherConf, TrainingConf, check_network, encoder_conf, read_encoder
from distill.configuration import checked, student_frame_ms
from distill.errors import UserError
from distill.files import check_torch_file, read_yaml, sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

    from distill.models.student import Student
    from distill.models.teacher import Teacher


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode, the token list it was trained with, and the training's configuration."""

    network: Student | Teacher
    token_list: list[str]
    config: dict[str, Any]


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read config.yaml of a training's directory or a packed model, and check what is used of it.

    Raises:
        UserError: it is missing, or not the configuration of a training.
    """
    directory = model_directory(directory, "torch")
    path = directory / "config.yaml"
    if not path.is_file():
        if (directory / "modeling_distillw2v2.py").is_file():
            raise UserError(f"{directory}: is for the library transformers; give the model that it was packed from")
        raise UserError(f"{path}: not found; give the directory of a finished training, such as exp/teacher")
    config = read_yaml(path, "give a training of this toolkit, or train it again")
    try:
        checked(TrainingConf, "", config)
    except UserError as error:
        raise UserError(f"{path}: not the configuration of a training of this toolkit: {error}") from None
    if (directory / "bpe.model").is_file():  # in a packed model
        config["bpemodel"] = str(directory / "bpe.model")
    return config


def checkpoint_path(directory: str | Path) -> Path:
    """File of the weights to use: the first of these that is in the directory.

    model.safetensors, model.pth, the average and the best epoch by the training's first ``best_model_criterion``
    (validation loss by default), latest.pth.

    Raises:
        UserError: none is.
    """
    directory = model_directory(directory, "torch")
    phase, criterion = (read_config(directory).get("best_model_criterion") or [["valid", "loss", "min"]])[0][:2]
    stem = f"{phase}.{criterion}"
    for name in ("model.safetensors", "model.pth", f"{stem}.ave.pth", f"{stem}.best.pth", "latest.pth"):
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"{directory}: holds no model ({stem}.ave.pth or latest.pth); let its training end first")


def model_checksum(directory: str | Path) -> str:
    """SHA-256 of the file from which :func:`load_network` loads the weights."""
    return sha256(checkpoint_path(directory))


def build_network(config: Mapping[str, Any], vocab_size: int) -> Student | Teacher:
    """Build the network that a training's configuration describes, with initial weights.

    Raises:
        UserError: the configuration is not that of a teacher or student, or its sizes are impossible. Everything is
            checked before anything is built.
    """
    from distill.models.student import Student
    from distill.models.teachers import build_teacher

    kinds: dict[str, Callable[..., Student | Teacher]] = {"student": Student, "teacher": build_teacher}
    kind = config.get("network")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"network: {kind!r} is neither teacher nor student")
    conf = check_network(config.get("network_conf") or {}, kind)
    try:
        return kinds[kind](vocab_size=vocab_size, **conf)
    except UserError:
        raise
    except Exception as error:  # whatever sizes that do not go together lead to
        raise UserError(f"network_conf: {error or type(error).__name__}") from error


def check_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], origin: str | Path) -> None:
    """Check that weights are exactly the parameters and buffers of a network, by name, shape and kind of number.

    Args:
        origin: where the weights were read, for the message.

    Raises:
        UserError: one is missing, unknown, of another shape, not floating-point, or not dense.
    """
    expected = network.state_dict()
    problems = [f"{key} is missing" for key in expected.keys() - weights.keys()]
    problems += [f"{key} is unknown" for key in weights.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & weights.keys()
        if weights[key].shape != expected[key].shape
    ]
    problems += [
        f"{key} is {weights[key].layout} of {weights[key].dtype} instead of {expected[key].dtype}"
        for key in expected.keys() & weights.keys()
        if weights[key].is_floating_point() != expected[key].is_floating_point()
        or weights[key].is_complex()
        or weights[key].layout != expected[key].layout
    ]
    if problems:
        shown = sorted(problems)[: 3 if len("".join(sorted(problems)[:3])) < 160 else 1]  # in a line of a terminal
        more = f" and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        raise UserError(f"{origin}: does not fit the network: {'; '.join(shown)}{more}")


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], origin: str | Path) -> None:
    """Copy weights into a network, after :func:`check_weights`.

    Raises:
        UserError: they do not fit, or a weight is not a finite number.
    """
    check_weights(network, weights, origin)
    network.load_state_dict(weights)
    check_finite(network, origin)


def check_finite(network: nn.Module, origin: str | Path) -> None:
    """Refuse a network with weights that are infinite or NaN, whose outputs would mean nothing.

    Raises:
        UserError: the message names the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{origin}: {name} holds numbers that are not finite; train it again, or get another copy")


def read_weights(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names begin with ``prefix``, without it."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            check_torch_file(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise TypeError
        # Tensors that share memory may be larger than their file.
        if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
            raise UserError(f"{path}: holds tensors larger than itself; do not trust this model")
        return tensors
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a model ({type(error).__name__}); train it again") from error


def load_criterion(directory: str | Path) -> dict[str, torch.Tensor]:
    """Trained weights of a training's loss, the projections of hidden layers; none if the model was packed."""
    return read_weights(checkpoint_path(directory), "criterion.")


def load_network(directory: str | Path, device: str | torch.device = "cpu") -> LoadedNetwork:
    """Load a trained network for recognition: in evaluation mode, without the training's auxiliary layers.

    Args:
        directory: of a training, or a packed model.

    Raises:
        UserError: the model is missing, damaged, or does not fit its configuration.
    """
    import torch

    config = read_config(directory)
    path = checkpoint_path(directory)
    weights = read_weights(path, "network.")
    token_list = config["token_list"]
    # An untrusted configuration could describe a network that fills the memory. On the meta device it takes none.
    with torch.device("meta"):
        check_weights(build_network(config, len(token_list)), weights, path)
    network = build_network(config, len(token_list))
    load_weights(network, weights, path)
    return LoadedNetwork(network.to(device).eval(), token_list, config)


class NetworkShape(NamedTuple):
    """Sizes of a network.

    Attributes:
        layers: number of layers.
        width: of each layer.
        frame_ms: milliseconds between frames of logits.
        encoder_frame_ms: milliseconds between frames of the hidden layers.
    """

    layers: int
    width: int
    frame_ms: int
    encoder_frame_ms: int


def network_shape(directory: str | Path) -> NetworkShape:
    """The sizes of a trained network, from its configuration alone."""
    return shape_of(read_config(directory))


def shape_of(config: Mapping[str, Any]) -> NetworkShape:
    """The sizes of the network of a training's configuration.

    Raises:
        UserError: it is not that of a teacher or student, or names a directory that has none.
    """
    conf = config.get("network_conf") or {}
    if config["network"] == "student":
        student = checked(StudentConf, "network_conf", conf)
        return NetworkShape(student.layers, student.width, *student_frame_ms(conf))
    named = checked(TeacherConf, "network_conf", conf).config
    arguments = read_encoder(Path(named)) if isinstance(named, str) else named
    encoder = encoder_conf(arguments, "network_conf.config")
    return NetworkShape(encoder.num_hidden_layers, encoder.hidden_size, *encoder.frame_ms)
