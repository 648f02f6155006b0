"""Teachers from recognisers that were fine-tuned elsewhere: Wav2Vec2ForCTC, HubertForCTC or WavLMForCTC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from distill.errors import UserError
from distill.files import atomic_write
from distill.models.teacher import Teacher, attention, encoder_classes

# Names of special tokens here. Hugging Face's tokenizers name theirs in tokenizer_config.json; the blank is the token
# that the model pads with.
BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"


def read_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """Read a JSON object from a file of a model's directory; an empty one if the file is missing and not ``needed``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            raise UserError(f"{path}: not found; --model must be a directory in Hugging Face's format") from None
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); copy the directory again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; copy the directory again")
    return content


def vocabulary(model: Path) -> dict[str, int]:
    """Output index of each of the model's tokens; special tokens have this toolkit's names.

    Raises:
        UserError: a file is missing or damaged, or the model has no blank.
    """
    config, tokenizer = read_json(model / "config.json"), read_json(model / "tokenizer_config.json", needed=False)
    outputs = {str(token): int(index) for token, index in read_json(model / "vocab.json").items()}
    blank = config.get("pad_token_id")
    if blank is None or blank not in outputs.values():
        raise UserError(f"{model / 'config.json'}: pad_token_id, the blank, is {blank}, which vocab.json does not have")

    def special(key: str, default: str) -> str:
        value = tokenizer.get(key) or default
        return value["content"] if isinstance(value, dict) else value

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
    model_type = str(read_json(model / "config.json").get("model_type"))
    _, _, ctc_class = encoder_classes(model_type, str(model / "config.json"))
    try:
        source, report = ctc_class.from_pretrained(
            model,
            local_files_only=True,
            attn_implementation=attention(model_type),
            layerdrop=0.0,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: cannot be loaded: {error}") from error
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
    if not token_list.is_file():
        raise UserError(f"{token_list}: not found; make it first (stage 5)")
    tokens = token_list.read_text(encoding="utf-8").rstrip("\n").split("\n")
    outputs = vocabulary(model)
    indices = find_outputs(tokens, outputs, token_list)
    source: Any = load_recogniser(model)
    normalize = bool(read_json(model / "preprocessor_config.json", needed=False).get("do_normalize", False))
    network_conf = {"config": source.config.to_diff_dict(), "normalize": normalize}
    teacher = Teacher(len(tokens), **network_conf)
    teacher.encoder.load_state_dict(getattr(source, source.base_model_prefix).state_dict())
    copy_outputs(source.lm_head, indices, teacher)
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
        yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
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
