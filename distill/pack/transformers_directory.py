"""Write a trained model as a directory that the library transformers loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import __version__
from distill.audio import SAMPLE_RATE
from distill.configuration import ChunkConf, read_conf
from distill.errors import UserError, require
from distill.files import naming
from distill.pack.contents import Members, json_bytes

STREAM_MS = 480  # chunk length at which a streaming student recognises, if config.json does not say otherwise
MODELLING = '''"""Loads the model through the Python package distillw2v2, which must be installed."""

from distill.pack.transformers_model import DistillW2V2Config, DistillW2V2ForCTC

__all__ = ["DistillW2V2Config", "DistillW2V2ForCTC"]
'''


def tokenizer_files(tokens: Sequence[str], token_type: str) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, which turn token ids of every frame into text.

    Repeated tokens and blanks are dropped, and the rest is joined as :func:`distill.decode.token_text.tokens_to_text`
    does it.
    """
    require("tokenizers", extra="transformers")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    special = [token for token in ("<blank>", "<sos/eos>") if token in tokens]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    collapse = decoders.CTC(pad_token=tokens[0], cleanup=False)
    unseen = [decoders.Replace(token, "") for token in special[1:]]
    if token_type in ("word", "phn"):
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        join: list[decoders.Decoder] = [decoders.WordPiece(prefix="##", cleanup=False)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        join = [decoders.Replace("<space>" if token_type == "char" else "▁", " ")]
    tidy = [decoders.Fuse(), decoders.Replace(Regex(" +"), " "), decoders.Replace(Regex("^ | $"), "")]
    tokenizer.decoder = decoders.Sequence([collapse, *unseen, *join, *tidy])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Wav2Vec2Processor",
        "pad_token": tokens[0],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_values", "attention_mask"],
    }
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json_bytes(config)}


def write_directory(config: Mapping[str, Any], members: Members, output: Path) -> None:
    """Write weights, configuration, tokenizer, feature extractor and modelling file into a new directory.

    Args:
        config: of the training.
        members: model.safetensors, tokens.txt, README.md (the model card) and LICENSE.txt.
        output: the directory; it must be empty or not there.

    Raises:
        UserError: the directory holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; give a new directory")
    tokens = config["token_list"]
    streams = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None) is not None
    training = {key: config[key] for key in ("network", "network_conf", "chunk_conf") if config.get(key)}
    files: Members = {
        **members,
        "modeling_distillw2v2.py": MODELLING.encode(),
        "config.json": json_bytes(
            {
                "model_type": "distillw2v2",
                "architectures": ["DistillW2V2ForCTC"],
                "auto_map": {
                    "AutoConfig": "modeling_distillw2v2.DistillW2V2Config",
                    "AutoModelForCTC": "modeling_distillw2v2.DistillW2V2ForCTC",
                },
                "distillw2v2": __version__,
                "dtype": "float32",
                "training": training,
                "vocab_size": len(tokens),
                "pad_token_id": 0,
                "chunk_ms": STREAM_MS if streams else None,
            }
        ),
        "preprocessor_config.json": json_bytes(
            {
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "processor_class": "Wav2Vec2Processor",
                "feature_size": 1,
                "sampling_rate": SAMPLE_RATE,
                "padding_value": 0.0,
                "do_normalize": False,
                "return_attention_mask": True,
            }
        ),
        **tokenizer_files(tokens, config.get("token_type") or "char"),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name, content in files.items():
            with naming(output / name):
                (part / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        part.chmod(0o755)
        part.rename(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    megabytes = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    loaded = f"AutoModelForCTC.from_pretrained({json.dumps(str(output))}, trust_remote_code=True)"
    print(f"{output}: {megabytes:.1f} MB; {loaded} loads it")
