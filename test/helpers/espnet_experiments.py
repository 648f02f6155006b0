"""Tiny asr experiments as ESPnet leaves them, with random weights."""

from argparse import Namespace

import torch
import yaml

TOKENS = ["<blank>", "<unk>", "low", "mid", "high", "<sos/eos>"]
COMMON = {"output_size": 16, "attention_heads": 2, "num_blocks": 3, "dropout_rate": 0.1}
ENCODERS = {
    "conformer": {"linear_units": 24, "cnn_module_kernel": 7, "macaron_style": True, "rel_pos_type": "latest",
                  "pos_enc_layer_type": "rel_pos", "selfattention_layer_type": "rel_selfattn"},
    "e_branchformer": {"cgmlp_linear_units": 32, "cgmlp_conv_kernel": 7, "linear_units": 24, "use_ffn": True,
                       "macaron_ffn": True, "merge_conv_kernel": 3},
    "transformer": {"linear_units": 24, "input_layer": "conv2d8"},
}  # fmt: skip


def write_experiment(folder, encoder: str, normalize: str | None, **changes):
    """An asr experiment as ESPnet leaves it, with random weights; its model."""
    import numpy as np
    from espnet2.tasks.asr import ASRTask

    folder.mkdir()
    rng = np.random.default_rng(0)
    mean, count = rng.normal(size=80) * 3, 10
    stats = {"count": count, "sum": count * mean, "sum_square": count * (mean**2 + rng.uniform(1, 4, size=80))}
    np.savez(folder / "feats_stats.npz", **stats)
    parser = ASRTask.get_parser()
    args = parser.parse_args([])
    config = {
        **vars(args), "token_list": TOKENS, "token_type": "word", "encoder": encoder, "normalize": normalize,
        "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")} if normalize == "global_mvn" else {},
        "encoder_conf": {**COMMON, **ENCODERS[encoder]}, "frontend_conf": {"n_fft": 512, "hop_length": 160},
        "model_conf": {"ctc_weight": 1.0}, "decoder": "transformer", "specaug": None, "output_dir": str(folder),
        **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = ASRTask.build_model(Namespace(**config)).eval()
    torch.nn.init.normal_(model.ctc.ctc_lo.weight)
    torch.save(model.state_dict(), folder / "valid.loss.ave.pth")
    plain = {key: value for key, value in config.items() if isinstance(value, str | int | float | list | dict | None)}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return model
