"""Make a teacher of a recogniser that was fine-tuned elsewhere: Wav2Vec2ForCTC, HubertForCTC or WavLMForCTC.

    python -m distill.bin.adopt_teacher --model /models/wav2vec2-large-960h --show_tokens > tokens.txt
    python -m distill.bin.adopt_teacher --model /models/wav2vec2-large-960h --token_list tokens.txt --output exp/teacher

The first prints the model's vocabulary as a token list, the second makes a directory as a training would have made it.
A recipe's own character list will do as well: each of its tokens is found in the model's vocabulary, in the other case
(a for A) if need be, and what the recipe does not know is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from distill.errors import UserError, cli
from distill.files import atomic_write

# Ours, and what Hugging Face's tokenizers call the same. The blank is whatever the model pads with.
BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"


def read_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """A JSON object of a model's directory; empty if it is not there and need not be."""
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
    """Output of the model for each token, with blank, space, unknown and sentence end by our names."""
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


def find_outputs(tokens: list[str], outputs: dict[str, int], origin: Path) -> list[int | None]:
    """The model's output for each token of a list; None for a missing <unk> or <sos/eos>, which no text needs."""
    found: list[int | None] = []
    missing = []
    for token in tokens:
        names = (token, token.swapcase(), token.upper(), token.lower())
        index = next((outputs[name] for name in names if name in outputs), None)
        if index is None and token not in (UNKNOWN, END):
            missing.append(token)
        found.append(index)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{origin}: the model has no output for {' '.join(missing[:5])}{more}; take its own tokens (--show_tokens)"
        )
    return found


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory in Hugging Face's format")
    parser.add_argument("--show_tokens", action="store_true", help="print a token list of the model's own and stop")
    parser.add_argument("--token_list", type=Path, help="one token a line; the first is blank")
    parser.add_argument("--token_type", default="char", choices=("char", "word", "phn"), help="(default: char)")
    parser.add_argument("--output", type=Path, help="directory of the teacher, such as exp/teacher")
    args = parser.parse_args(argv)

    outputs = vocabulary(args.model)
    if args.show_tokens:
        letters = sorted(outputs.keys() - {BLANK, UNKNOWN, END}, key=outputs.__getitem__)
        print(*[BLANK, UNKNOWN, *(t for t in letters if t != "<s>"), END], sep="\n")
        return
    if args.token_list is None or args.output is None:
        raise UserError("adopt_teacher: give --token_list and --output, or --show_tokens")
    if not args.token_list.is_file():
        raise UserError(f"{args.token_list}: not found; make it first (stage 5)")
    tokens = args.token_list.read_text(encoding="utf-8").rstrip("\n").split("\n")
    found = find_outputs(tokens, outputs, args.token_list)

    import torch
    import transformers
    import yaml

    from distill.models.teacher import Teacher, attention, encoder_classes

    transformers.logging.set_verbosity_error()  # what it would warn of is checked here
    transformers.utils.logging.disable_progress_bar()
    model_type = str(read_json(args.model / "config.json").get("model_type"))
    _, _, ctc_class = encoder_classes(model_type, str(args.model / "config.json"))
    try:
        source, report = ctc_class.from_pretrained(
            args.model,
            local_files_only=True,
            attn_implementation=attention(model_type),
            layerdrop=0.0,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{args.model}: cannot be loaded: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise UserError(
            f"{args.model}: holds no {missing[0]}; only a model that was fine-tuned with CTC can be adopted, a "
            "pretrained one is fine-tuned first (stage 7)"
        )
    normalize = bool(read_json(args.model / "preprocessor_config.json", needed=False).get("do_normalize", False))
    network_conf = {"config": source.config.to_diff_dict(), "normalize": normalize}
    teacher = Teacher(len(tokens), **network_conf)
    teacher.encoder.load_state_dict(getattr(source, source.base_model_prefix).state_dict())
    head = source.lm_head
    with torch.no_grad():
        # What has no output of its own gets one that never wins.
        teacher.output.weight.zero_()
        teacher.output.bias.fill_(float(head.bias.min()) - 10.0)
        for row, index in enumerate(found):
            if index is not None:
                teacher.output.weight[row], teacher.output.bias[row] = head.weight[index], head.bias[index]
    with atomic_write(args.output / "model.pth", "wb") as stream:
        torch.save({f"network.{key}": value for key, value in teacher.state_dict().items()}, stream)
    config = {
        "network": "teacher",
        "network_conf": network_conf,
        "token_list": tokens,
        "token_type": args.token_type,
        "bpemodel": None,
        "adopted_from": str(args.model.resolve()),
    }
    with atomic_write(args.output / "config.yaml") as stream:
        yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
    unused = len(outputs) - len({index for index in found if index is not None})
    print(f"{args.output}: {model_type}, {len(tokens)} tokens; {unused} outputs of the model are not among them")


if __name__ == "__main__":
    main()
