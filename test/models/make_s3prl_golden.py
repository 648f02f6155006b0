"""What ESPnet puts out over upstreams of s3prl; needs s3prl, which is no dependency. ``make check-s3prl``, or:

    pip install --no-deps --target /tmp/s3prl s3prl==0.4.18
    PYTHONPATH=.:test/helpers:/tmp/s3prl python test/models/make_s3prl_golden.py [--check]

writes test/models/s3prl_golden.npz, or with --check compares what is in it. Each experiment of :mod:`s3prl_experiments`
is loaded into ESPnet's own model with its S3prlFrontend, over s3prl's own classes of the upstream, strictly, so that
the names and shapes of all tensors are s3prl's. Its arrays, for each case and N samples: ``CASE/N/logits`` (T, V), and
``CASE/N/hidden`` (layers, T, D) for the first N.
"""

from __future__ import annotations

import sys
import tempfile
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import s3prl_experiments as tiny
import torch
from tiny_networks import speech

GOLDEN = Path(__file__).with_name("s3prl_golden.npz")
# The last frame is repeated once or twice; 9000 are quiet; few frames; fewer samples than s3prl takes
LENGTHS = {16000: 1.0, 9000: 0.005, 12345: 1.0, 2000: 1.0, 500: 1.0}


def audio_of(samples: int) -> torch.Tensor:
    """(1, samples)."""
    return LENGTHS[samples] * speech(samples)[None]


def lengths_of(case: tiny.Case) -> list[int]:
    """The numbers of samples that ESPnet takes."""
    return [samples for samples in LENGTHS if samples >= 2000 or case.input_layer == "linear"]


def upstream_config(case: tiny.Case) -> dict[str, Any]:
    """The configuration of an upstream in its checkpoint."""
    layers = list(zip(tiny.CHANNELS, tiny.KERNELS, (5, 2, 2, 2, 2, 2, 2), strict=True))
    config = {
        "extractor_mode": "layer_norm" if case.layer_norm else "default",
        "layer_norm_first": case.layer_norm,
        "conv_feature_layers": str(layers),
        "conv_bias": case.layer_norm and case.kind != "wavlm",
        "encoder_layers": tiny.LAYERS,
        "encoder_embed_dim": tiny.WIDTH,
        "encoder_ffn_embed_dim": tiny.INNER,
        "encoder_attention_heads": tiny.HEADS,
        "conv_pos": tiny.POSITIONS,
        "conv_pos_groups": tiny.GROUPS,
    }
    if case.kind == "wavlm":
        relative = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": tiny.BUCKETS}
        heads = {"encoder_attention_heads": tiny.HEADS // 4, "max_distance": 800}
        return {**config, **relative, **heads, "normalize": case.layer_norm}
    if case.kind == "hubert":
        return {**config, "final_dim": tiny.FINAL, "label_rate": 50.0}
    return {**config, "final_dim": tiny.FINAL, "quantize_targets": True, "latent_vars": 4, "latent_groups": 2}


def write_upstream(path: Path, case: tiny.Case) -> None:
    """The file that s3prl would download."""
    config = upstream_config(case)
    weights = {key: torch.zeros(shape) for key, shape in tiny.upstream_shapes(case).items()}
    task = {"normalize": case.layer_norm}
    if case.kind == "wavlm":
        torch.save({"cfg": config, "model": weights}, path)
    elif case.kind == "hubert":
        symbols = [["a"] * 8]
        parts = {"model_cfg": config, "task_cfg": task, "model_weight": weights, "dictionaries_symbols": symbols}
        torch.save(parts, path)
    else:
        torch.save({"model_cfg": config, "task_cfg": task, "model_weight": weights}, path)


def install_hub() -> types.ModuleType:
    """Only these upstreams: s3prl's list imports others that need more packages and an older torchaudio."""
    import s3prl

    hub = types.ModuleType("s3prl.hub")
    hub.options = lambda *_: [case.upstream for case in tiny.CASES.values()]
    sys.modules["s3prl.hub"] = s3prl.hub = hub
    return hub


@torch.no_grad()
def values() -> dict[str, np.ndarray]:
    """All arrays."""
    hub = install_hub()
    from espnet2.tasks.asr import ASRTask
    from s3prl.upstream.hubert.hubconf import hubert_local
    from s3prl.upstream.wav2vec2.hubconf import wav2vec2_local
    from s3prl.upstream.wavlm.hubconf import wavlm_local

    makers = {"wavlm": wavlm_local, "hubert": hubert_local, "wav2vec2": wav2vec2_local}
    result: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(tiny.CASES.items()):
            experiment, upstream = Path(folder, str(number)), str(Path(folder, f"{number}.pt"))
            tiny.write_s3prl_experiment(experiment, name)
            write_upstream(Path(upstream), case)
            maker = makers[case.kind]
            setattr(hub, case.upstream, lambda refresh, maker=maker, upstream=upstream: maker(ckpt=upstream))
            config = {**tiny.espnet_config(experiment, case)}
            config["frontend_conf"] = {**config["frontend_conf"], "download_dir": folder}
            model = ASRTask.build_model(Namespace(**config)).eval()
            model.load_state_dict(torch.load(experiment / "valid.acc.ave.pth"))
            for samples in lengths_of(case):
                hidden: list[torch.Tensor] = []
                hooks = [
                    layer.register_forward_hook(lambda _layer, _inputs, output, hidden=hidden: hidden.append(output))
                    for layer in model.encoder.encoders
                ]
                encoded, lengths = model.encode(audio_of(samples), torch.tensor([samples]))
                for hook in hooks:
                    hook.remove()
                assert encoded.shape[1] == int(lengths)
                result[f"{name}/{samples}/logits"] = model.ctc.ctc_lo(encoded)[0].numpy()
                if samples == next(iter(LENGTHS)):
                    while isinstance(hidden[0], tuple):
                        hidden = [output[0] for output in hidden]
                    result[f"{name}/{samples}/hidden"] = torch.cat(hidden).numpy()
    return result


if __name__ == "__main__":
    arrays = values()
    if sys.argv[1:] == ["--check"]:
        with np.load(GOLDEN) as known:
            difference = max(float(np.abs(known[key] - arrays[key]).max()) for key in known)
            print(f"{len(known.keys() & arrays.keys())} arrays, the largest difference is {difference:.1e}")
            sys.exit(int(known.keys() != arrays.keys() or difference > 1e-4))
    else:
        np.savez_compressed(GOLDEN, **arrays)
        print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size} bytes")
