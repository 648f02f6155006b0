"""Teachers from recognisers that were fine-tuned elsewhere, in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from distill.checkpoints.load import check_finite, load_weights
from distill.checkpoints.schema import case_of, check_tokens, encoder_arguments, read_encoder
from distill.configuration import shortened
from distill.errors import UserError
from distill.files import atomic_write, read_json, read_text, yaml_text
from distill.models.teacher import Teacher, encoder_classes, load_pretrained
from distill.models.teachers import build_teacher

# Names of special tokens here. Hugging Face's tokenizers name theirs in tokenizer_config.json; the blank is the token
# that the model pads with.
BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"


MAX_VOCABULARY = 1_000_000  # outputs
# What the features of a model type are computed with, by the names of its preprocessor_config.json
FEATURES: dict[str, dict[str, Any]] = {
    "wav2vec2-bert": {"num_mel_bins": 80, "stride": 2, "sampling_rate": 16000},
    "parakeet_encoder": {
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": 0.97,
        "sampling_rate": 16000,
    },
}
COPY = "--model must be a directory in Hugging Face's format; copy it again"


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's directory; an empty one if there is no such file."""
    return read_json(path, COPY) if path.exists() else {}


def read_vocabulary(model: Path) -> tuple[dict[str, Any], Path]:
    """Output of each token, or the vocabulary of each language; and the file that has it.

    It is vocab.json, or the tokenizer.json of the library tokenizers.
    """
    path = model / "tokenizer.json"
    if (model / "vocab.json").exists() or not path.exists():
        return read_json(model / "vocab.json", COPY), model / "vocab.json"
    content = read_json(path, COPY)
    try:
        pieces, added = content["model"]["vocab"], content.get("added_tokens") or []
        if not isinstance(pieces, dict):  # pieces and their scores
            pieces = {piece: index for index, (piece, _) in enumerate(pieces)}
        outputs = {**pieces, **{token["content"]: token["id"] for token in added}}
        if not all(isinstance(token, str) for token in outputs):
            raise TypeError
        return outputs, path
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: has no model.vocab of tokens and their numbers; {COPY}") from None


def read_preprocessor(model: Path) -> dict[str, Any]:
    """What the model's feature extractor was saved with, alone or within its processor; empty if it was not."""
    if (model / "preprocessor_config.json").exists():
        return read_json(model / "preprocessor_config.json", COPY)
    extractor = read_optional(model / "processor_config.json").get("feature_extractor")
    return extractor if isinstance(extractor, dict) else {}


def adapter_file(model: Path, language: str | None) -> tuple[str | None, Path | None]:
    """Language and file of the adapter to load, of a model with one for each language (MMS); None of any other model.

    Args:
        language: None: ``target_lang`` in tokenizer_config.json.

    Raises:
        UserError: the model has no such language, or its file is missing.
    """
    vocabularies, path = read_vocabulary(model)
    languages = [name for name, outputs in vocabularies.items() if isinstance(outputs, dict)]
    if not languages:
        if language is not None:
            raise UserError(f"--language {language}: {path} has one vocabulary only; leave it out")
        return None, None
    chosen = language or read_optional(model / "tokenizer_config.json").get("target_lang")
    if not isinstance(chosen, str) or chosen not in languages or Path(f"adapter.{chosen}").name != f"adapter.{chosen}":
        some = ", ".join(sorted(languages)[:5])
        raise UserError(f"--language {shortened(chosen)}: must be a language of {model / 'vocab.json'}, such as {some}")
    path = model / f"adapter.{chosen}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: not found; copy it to the model, or give another --language")
    return chosen, path


def vocabulary(model: Path, language: str | None = None) -> dict[str, int]:
    """Output index of each of the model's tokens; special tokens have this toolkit's names.

    Args:
        language: see :func:`adapter_file`.

    Raises:
        UserError: a file is missing or damaged, the model has no blank, or a token is not one line of plain text.
    """
    config, tokenizer = read_json(model / "config.json", COPY), read_optional(model / "tokenizer_config.json")
    chosen, adapter = adapter_file(model, language)
    outputs, path = read_vocabulary(model)
    if chosen is not None:
        outputs = outputs[chosen]
    size = config.get("vocab_size")
    if type(size) is not int or not 1 <= size <= MAX_VOCABULARY:
        raise UserError(f"{model / 'config.json'}: vocab_size is {shortened(size)} instead of the number of outputs")
    if adapter is not None:
        size = adapter_outputs(adapter)
    for token, index in outputs.items():
        if type(index) is not int or index < 0:
            raise UserError(f"{path}: {token!r} has the output {shortened(index)}, not a whole number from 0 on")
    outputs = {token: index for token, index in outputs.items() if index < size}  # there are no others
    check_tokens(list(outputs), str(path))
    blank = config.get("pad_token_id")
    if type(blank) is not int or blank not in outputs.values():
        raise UserError(
            f"{model / 'config.json'}: pad_token_id, the blank, is {shortened(blank)}, which {path.name} does not have"
        )

    def special(key: str, default: str) -> str:
        value = tokenizer.get(key) or default
        name = value.get("content") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise UserError(f"{model / 'tokenizer_config.json'}: {key} is {shortened(value)} instead of a token")
        return name

    renamed = {
        special("word_delimiter_token", "|" if path.name == "vocab.json" else SPACE): SPACE,
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


def model_tokens(model: Path, language: str | None = None) -> list[str]:
    """Token list of all of a model's letters, in the order of its outputs."""
    outputs = vocabulary(model, language)
    letters = sorted(outputs.keys() - {BLANK, UNKNOWN, END, "<s>"}, key=outputs.__getitem__)
    return [BLANK, UNKNOWN, *letters, END]


def adapter_outputs(path: Path) -> int:
    """Number of outputs of a language's adapter."""
    try:
        with safe_open(path, "pt") as weights:
            return int(weights.get_slice("lm_head.weight").get_shape()[0])
    except Exception as error:  # whatever safetensors raises
        raise UserError(f"{path}: not a language's adapter ({type(error).__name__}); copy it again") from None


def load_recogniser(model: Path, language: str | None = None) -> Any:
    """Load a model of class ...ForCTC from a directory in Hugging Face's format.

    Raises:
        UserError: it cannot be loaded, or was not fine-tuned with CTC.
    """
    transformers.logging.set_verbosity_error()  # whatever it would warn about is checked below
    transformers.utils.logging.disable_progress_bar()
    config = read_encoder(model)
    config_class, _, ctc_class = encoder_classes(config["model_type"], str(model / "config.json"))
    sizes = {name: read_json(model / "config.json", COPY)[name] for name in ("vocab_size", "pad_token_id")}
    if config["model_type"] == "parakeet_encoder":
        described = transformers.ParakeetCTCConfig(encoder_config=config, **sizes)
    else:
        described = config_class(**config, **sizes)
    source, report = load_pretrained(ctc_class, model, described)
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise UserError(
            f"{model}: has no {missing[0]}; only a model that was fine-tuned with CTC can be adopted, a pretrained one "
            "is fine-tuned first (stage 7)"
        )
    unknown = sorted(key for key in report["unexpected_keys"] if ".layers." in key)
    if unknown:
        raise UserError(f"{model}: config.json describes a network without {unknown[0]}; copy the directory again")
    adapter = adapter_file(model, language)[1]
    if adapter is not None:
        load_adapter(source, adapter)
    return source


def load_adapter(source: Any, path: Path) -> None:
    """Load a language's adapter into a recogniser: small layers after its own, and the prediction layer.

    Raises:
        UserError: it is damaged, or belongs to another model.
    """
    source.lm_head = torch.nn.Linear(source.config.hidden_size, adapter_outputs(path))
    weights: dict[str, torch.Tensor] = load_file(path)
    names = (name for name in source.state_dict() if ".adapter_layer." in name or name.startswith("lm_head."))
    absent = sorted(set(names) - weights.keys())
    if absent or not any(".adapter_layer." in name for name in weights):
        raise UserError(f"{path}: has no {absent[0] if absent else 'layers'}; it belongs to another model")
    load_weights(source, {**source.state_dict(), **weights}, path)


def tokens_of(
    model: Path, token_list: Path | None, token_type: str, language: str | None, own: bool
) -> tuple[list[str], list[int | None], str]:
    """Tokens of a teacher, the model's output for each, and their type; see :func:`adopt_teacher`."""
    outputs = vocabulary(model, language)
    tokens = None
    if token_list is not None:
        tokens = read_text(token_list, "make it first (stage 5)").rstrip("\n").split("\n")
        check_tokens(tokens, str(token_list))
    if tokens is not None and not own:
        return tokens, find_outputs(tokens, outputs, token_list or model), token_type
    all_tokens = model_tokens(model, language)
    indices = find_outputs(all_tokens, outputs, model)
    change_case = case_of(tokens) if tokens is not None else str
    cased = [token if token in (BLANK, UNKNOWN, SPACE, END) else change_case(token) for token in all_tokens]
    if len(set(cased)) == len(cased):  # else it has both cases, which its text has to keep apart
        all_tokens = cased
    return all_tokens, indices, "bpe" if any("▁" in token for token in all_tokens) else "char"


def adopt_teacher(
    model: Path,
    token_list: Path | None,
    token_type: str,
    output: Path,
    language: str | None = None,
    own_tokens: bool = False,
) -> None:
    """Write a directory like that of a training, from which the recogniser loads as a teacher with the same outputs.

    Args:
        model: directory in Hugging Face's format.
        token_list: file with a token on each line, blank first. The model's other outputs are left out. None: all of
            the model's tokens.
        token_type: char, bpe, word or phn, of that list.
        output: directory to write model.pth and config.yaml to.
        language: of a model with an adapter for each language, see :func:`adapter_file`.
        own_tokens: the teacher gets all of the model's tokens, in the case of ``token_list``.

    Raises:
        UserError: the token list is missing, the model lacks one of its tokens, or cannot be adopted.
    """
    tokens, indices, token_type = tokens_of(model, token_list, token_type, language, own_tokens)
    source = load_recogniser(model, language)
    preprocessor = read_preprocessor(model)
    normalize = preprocessor.get("do_normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(f"{model / 'preprocessor_config.json'}: do_normalize is neither true nor false")
    encoder, head = (
        (source.encoder, source.ctc_head)
        if hasattr(source, "ctc_head")
        else (getattr(source, source.base_model_prefix), source.lm_head)
    )
    model_type = encoder.config.model_type
    for key, value in FEATURES.get(model_type, {}).items():
        if preprocessor.get(key, value) != value:
            raise UserError(
                f"{model / 'preprocessor_config.json'}: {key} is {shortened(preprocessor[key])}, not {value}"
            )
    arguments = encoder_arguments(
        encoder.config.to_diff_dict() | {"model_type": model_type}, str(model / "config.json")
    )
    network_conf: dict[str, Any] = {"config": arguments, "normalize": normalize}
    teacher = build_teacher(len(tokens), **network_conf)
    teacher.encoder.load_state_dict(encoder.state_dict())
    copy_outputs(head, indices, teacher)
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
    unused = len(vocabulary(model, language)) - len({index for index in indices if index is not None})
    print(f"{output}: {model_type}, {len(tokens)} tokens; {unused} outputs of the model are not among them")


@torch.no_grad()
def copy_outputs(head: torch.nn.Linear | torch.nn.Conv1d, indices: Sequence[int | None], teacher: Teacher) -> None:
    """Copy the model's prediction layer, reordered; a token without an output gets a bias with which it never wins."""
    teacher.output.weight.zero_()
    assert head.bias is not None
    teacher.output.bias.fill_(float(head.bias.min()) - 10.0)
    weight = head.weight.flatten(1)  # a convolution's has a third dimension, of one frame
    for row, index in enumerate(indices):
        if index is not None:
            teacher.output.weight[row], teacher.output.bias[row] = weight[index], head.bias[index]
