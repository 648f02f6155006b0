"""Teachers from recognisers that were fine-tuned elsewhere: Wav2Vec2ForCTC, HubertForCTC or WavLMForCTC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from distill.checkpoints.load import check_finite
from distill.checkpoints.schema import check_tokens, encoder_arguments, read_encoder
from distill.configuration import shortened
from distill.errors import UserError
from distill.files import atomic_write, read_json, read_text, yaml_text
from distill.models.teacher import Teacher, encoder_classes, load_pretrained

# Names of special tokens here. Hugging Face's tokenizers name theirs in tokenizer_config.json; the blank is the token
# that the model pads with.
BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"


MAX_VOCABULARY = 1_000_000  # outputs
COPY = "--model must be a directory in Hugging Face's format; copy it again"


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's directory; an empty one if there is no such file."""
    return read_json(path, COPY) if path.exists() else {}


def vocabulary(model: Path) -> dict[str, int]:
    """Output index of each of the model's tokens; special tokens have this toolkit's names.

    Raises:
        UserError: a file is missing or damaged, the model has no blank, or a token is not one line of plain text.
    """
    config, tokenizer = read_json(model / "config.json", COPY), read_optional(model / "tokenizer_config.json")
    path = model / "vocab.json"
    outputs = read_json(path, COPY)
    size = config.get("vocab_size")
    if type(size) is not int or not 1 <= size <= MAX_VOCABULARY:
        raise UserError(f"{model / 'config.json'}: vocab_size is {shortened(size)} instead of the number of outputs")
    for token, index in outputs.items():
        if type(index) is not int or index < 0:
            raise UserError(f"{path}: {token!r} has the output {shortened(index)}, not a whole number from 0 on")
    outputs = {token: index for token, index in outputs.items() if index < size}  # there are no others
    check_tokens(list(outputs), str(path))
    blank = config.get("pad_token_id")
    if type(blank) is not int or blank not in outputs.values():
        raise UserError(
            f"{model / 'config.json'}: pad_token_id, the blank, is {shortened(blank)}, which vocab.json does not have"
        )

    def special(key: str, default: str) -> str:
        value = tokenizer.get(key) or default
        name = value.get("content") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise UserError(f"{model / 'tokenizer_config.json'}: {key} is {shortened(value)} instead of a token")
        return name

    renamed = {
        special("word_delimiter_token", "|"): SPACE,
        special("unk_token", "<unk>"): UNKNOWN,
        special("eos_token", "</s>"): END,
    }
    named = {renamed.get(token, token): index for token, index in outputs.items() if index != blank}
    return {BLANK: blank, **named}


def find_outputs(tokens: Sequence[str], outputs: dict[str, int], origin: Path) -> list[int | None]:
    """Output index of the model for each token of a list, which may be in the other case.

    ``<unk>`` and ``<sos/eos>`` may be missing and are then None, as they are in no text.

    Args:
        outputs: from :func:`vocabulary`.
        origin: file of the token list, for messages.

    Raises:
        UserError: the model has no output for another token.
    """
    indices: list[int | None] = []
    missing = []
    for token in tokens:
        names = (token, token.swapcase(), token.upper(), token.lower())
        index = next((outputs[name] for name in names if name in outputs), None)
        if index is None and token not in (UNKNOWN, END):
            missing.append(token)
        indices.append(index)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{origin}: the model has no output for {' '.join(missing[:5])}{more}; use its own tokens (--show_tokens)"
        )
    return indices


def model_tokens(model: Path) -> list[str]:
    """Token list of all of a model's letters, in the order of its outputs."""
    outputs = vocabulary(model)
    letters = sorted(outputs.keys() - {BLANK, UNKNOWN, END, "<s>"}, key=outputs.__getitem__)
    return [BLANK, UNKNOWN, *letters, END]


def load_recogniser(model: Path) -> torch.nn.Module:
    """Load a model of class ...ForCTC from a directory in Hugging Face's format.

    Raises:
        UserError: it cannot be loaded, or was not fine-tuned with CTC.
    """
    transformers.logging.set_verbosity_error()  # whatever it would warn about is checked below
    transformers.utils.logging.disable_progress_bar()
    config = read_encoder(model)
    config_class, _, ctc_class = encoder_classes(config["model_type"], str(model / "config.json"))
    sizes = {name: read_json(model / "config.json", COPY)[name] for name in ("vocab_size", "pad_token_id")}
    source, report = load_pretrained(ctc_class, model, config_class(**config, **sizes))
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise UserError(
            f"{model}: has no {missing[0]}; only a model that was fine-tuned with CTC can be adopted, a pretrained one "
            "is fine-tuned first (stage 7)"
        )
    return source


def adopt_teacher(model: Path, token_list: Path, token_type: str, output: Path) -> None:
    """Write a directory like that of a training, from which the recogniser loads as a teacher with the same outputs.

    Args:
        model: directory in Hugging Face's format.
        token_list: file with a token on each line, blank first. The model's other outputs are left out.
        token_type: char, word or phn.
        output: directory to write model.pth and config.yaml to.

    Raises:
        UserError: the token list is missing, the model lacks one of its tokens, or cannot be adopted.
    """
    tokens = read_text(token_list, "make it first (stage 5)").rstrip("\n").split("\n")
    check_tokens(tokens, str(token_list))
    outputs = vocabulary(model)
    indices = find_outputs(tokens, outputs, token_list)
    source: Any = load_recogniser(model)
    normalize = read_optional(model / "preprocessor_config.json").get("do_normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(f"{model / 'preprocessor_config.json'}: do_normalize is neither true nor false")
    encoder = encoder_arguments(source.config.to_diff_dict(), str(model / "config.json"))
    network_conf: dict[str, Any] = {
        "config": encoder | {"model_type": source.config.model_type},
        "normalize": normalize,
    }
    teacher = Teacher(len(tokens), **network_conf)
    teacher.encoder.load_state_dict(getattr(source, source.base_model_prefix).state_dict())
    copy_outputs(source.lm_head, indices, teacher)
    check_finite(teacher, model)
    with atomic_write(output / "model.pth", "wb") as stream:
        torch.save({f"network.{key}": value for key, value in teacher.state_dict().items()}, stream)
    config = {
        "network": "teacher",
        "network_conf": network_conf,
        "token_list": tokens,
        "token_type": token_type,
        "bpemodel": None,
        "adopted_from": str(model.resolve()),
    }
    with atomic_write(output / "config.yaml") as stream:
        stream.write(yaml_text(config))
    unused = len(outputs) - len({index for index in indices if index is not None})
    print(
        f"{output}: {source.config.model_type}, {len(tokens)} tokens; {unused} outputs of the model are not among them"
    )


@torch.no_grad()
def copy_outputs(head: torch.nn.Linear, indices: Sequence[int | None], teacher: Teacher) -> None:
    """Copy the model's prediction layer, reordered; a token without an output gets a bias with which it never wins."""
    teacher.output.weight.zero_()
    teacher.output.bias.fill_(float(head.bias.min()) - 10.0)
    for row, index in enumerate(indices):
        if index is not None:
            teacher.output.weight[row], teacher.output.bias[row] = head.weight[index], head.bias[index]
