"""Write a trained wav2vec 2.0 teacher as a directory in Hugging Face's format, with weights in float16.

    python utils/teacher_to_huggingface.py --model exp/teacher --output teacher

transformers.Wav2Vec2ForCTC opens it, a recipe takes it with --teacher DIR, and another teacher's training begins from
its encoder with ``network_conf: {config: DIR}``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill.checkpoints.load import load_network
from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.models.teacher import Teacher


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the teacher's training")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    args = parser.parse_args(argv)

    teacher, token_list, _ = load_network(args.model)
    if not isinstance(teacher, Teacher) or teacher.config.model_type != "wav2vec2":
        raise UserError(f"{args.model}: not a wav2vec 2.0 teacher")
    from safetensors.torch import save

    weights = {f"wav2vec2.{name}": tensor for name, tensor in teacher.encoder.state_dict().items()}
    weights |= {f"lm_head.{name}": tensor for name, tensor in teacher.output.state_dict().items()}
    config = teacher.config.to_diff_dict()
    config |= {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": len(token_list), "pad_token_id": 0}
    config |= {"model_type": "wav2vec2", "dtype": "float16"}
    config.pop("_attn_implementation", None)
    vocabulary = {token: number for number, token in enumerate(token_list)}
    preprocessor = {"do_normalize": teacher.normalize, "sampling_rate": 16000}
    contents = {"config.json": config, "vocab.json": vocabulary, "preprocessor_config.json": preprocessor}
    for name, content in contents.items():
        with atomic_write(args.output / name) as stream:
            stream.write(json.dumps(content, indent=1) + "\n")
    with atomic_write(args.output / "model.safetensors", "wb") as stream:
        stream.write(save({name: t.half().contiguous() for name, t in weights.items()}, metadata={"format": "pt"}))
    size = (args.output / "model.safetensors").stat().st_size
    print(f"{args.output}: {len(weights)} tensors in float16, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
