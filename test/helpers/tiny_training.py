"""Configurations of seconds-long trainings, and the audio that they train on."""

import copy

import soundfile
import torch

TOKENS = ["<blank>", "<unk>", "low", "mid", "high", "<sos/eos>"]
HERTZ = {"low": 300, "mid": 900, "high": 2500}

TEACHER = {
    "network": "teacher",
    "network_conf": {
        "config": {
            "conv_dim": [16, 16, 16, 16, 16, 16, 16],
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "do_stable_layer_norm": True,
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            "mask_time_prob": 0.0,
        }
    },
    "distill_conf": {"target": "none", "weight_ctc": 1.0},
    "optim_conf": {"lr": 0.001},
}
STUDENT = {
    "network": "student",
    "network_conf": {
        "front_end": "cnn",
        "front_end_conf": {"channels": [16, 16, 16, 16, 16, 16, 16]},
        "width": 16,
        "layers": 2,
        "heads": 2,
        "ffn": 32,
        "kernel": 7,
        "dropout": 0.0,
    },
    "distill_conf": {"alpha": 0.8, "beta": 0.8, "target": "posterior"},
    "optim_conf": {"lr": 0.001},
}


def changed(config, **sections):
    """A copy of a configuration; keys of a section given as a dict replace those of the section it has."""
    config = copy.deepcopy(config)
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    return config


def speech_of(world, part="valid"):
    """All audio of a part of the tiny corpus as a batch: (B, N) padded with zeros, and (B,) samples."""
    audio = [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in sorted((world.root / part).glob("*.wav"))
    ]
    return torch.nn.utils.rnn.pad_sequence(audio, batch_first=True), torch.tensor([len(x) for x in audio])
