"""Write a trained wav2vec 2.0 teacher as a directory in Hugging Face's format, with weights in float16.

    python utils/teacher_to_huggingface.py --model exp/teacher --output teacher

transformers.AutoModelForCTC opens it, a recipe takes it with --teacher DIR, and another teacher's training begins from
its encoder with ``network_conf: {config: DIR}``, or as a whole with --teacher_init DIR. Its blocks may be Conformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill.checkpoints.load import load_network
from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.models.teacher import Teacher, encoder_classes


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the teacher's training")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    args = parser.parse_args(argv)

    teacher, token_list, _ = load_network(args.model)
    if not isinstance(teacher, Teacher) or teacher.config.model_type not in ("wav2vec2", "wav2vec2-conformer"):
        raise UserError(f"{args.model}: not a wav2vec 2.0 teacher")
    from safetensors.torch import save

    model_type = teacher.config.model_type
    ctc_class = encoder_classes(model_type, str(args.model))[2]
    weights = {f"{ctc_class.base_model_prefix}.{name}": tensor for name, tensor in teacher.encoder.state_dict().items()}
    weights |= {f"lm_head.{name}": tensor for name, tensor in teacher.output.state_dict().items()}
    config = teacher.config.to_diff_dict()
    config |= {"architectures": [ctc_class.__name__], "vocab_size": len(token_list), "pad_token_id": 0}
    config |= {"model_type": model_type, "dtype": "float16"}
    config.pop("_attn_implementation", None)
    vocabulary = {token: number for number, token in enumerate(token_list)}
    preprocessor = {"do_normalize": teacher.normalize, "sampling_rate": 16000}
    contents = {"config.json": config, "vocab.json": vocabulary, "preprocessor_config.json": preprocessor}
    for name, content in contents.items():
        with atomic_write(args.output / name) as stream:
            stream.write(json.dumps(content, indent=1) + "\n")
    halved = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in weights.items()}
    with atomic_write(args.output / "model.safetensors", "wb") as stream:
        stream.write(save(halved, metadata={"format": "pt"}))
    size = (args.output / "model.safetensors").stat().st_size
    print(f"{args.output}: {len(weights)} tensors in float16, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
