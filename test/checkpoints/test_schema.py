"""What a model's configuration says is checked before anything is built from it."""

import pytest
import small_models
import torch

from distill.checkpoints.load import build_network, load_network
from distill.checkpoints.schema import check_tokens, encoder_arguments
from distill.errors import UserError

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "key", "value", "reason"),
    [
        ("full", "layers", 10**8, "layers: 100000000 should be less"),
        ("full", "width", "32", "width: '32' should be a valid integer"),
        ("full", "dropout", NAN, "dropout: nan should be"),
        ("full", "front_end_conf", {"channels": [8] * 300000}, "channels.* at most 32"),
        ("full", "front_end_conf", {"strides": [2] * 7}, "frames of 128 samples"),
        ("full", "unknown", 1, "no key 'unknown'"),
        ("teacher", "num_hidden_layers", 10**8, "num_hidden_layers: 100000000"),
        ("teacher", "conv_dim", [8] * 300000, "conv_dim: "),
        ("teacher", "add_adapter", True, "add_adapter changes the frame rate"),
        ("teacher", "layer_norm_eps", float("inf"), "layer_norm_eps: inf"),
        ("teacher", "num_attention_heads", 7, "num_attention_heads: 7 does not divide"),
    ],
)
def test_every_value_is_checked(kind, key, value, reason, monkeypatch):
    monkeypatch.setattr("distill.models.student.Student.__init__", lambda *_: pytest.fail("was built"))
    monkeypatch.setattr("distill.models.teacher.Teacher.__init__", lambda *_: pytest.fail("was built"))
    config = small_models.config_of(kind)
    conf = dict(config["network_conf"])
    if kind == "teacher":
        conf["config"] = {**conf["config"], key: value}
    else:
        conf[key] = value
    with pytest.raises(UserError, match=f"network_conf.*{reason}"):
        build_network({**config, "network_conf": conf}, 11)


def test_of_a_foreign_configuration_only_what_is_checked_is_used():
    given = {"hidden_size": 32, "num_attention_heads": 2, "auto_map": {"x": "y"}, "_attn_implementation": 5}
    assert encoder_arguments(given, "config.json") == {"hidden_size": 32, "num_attention_heads": 2}


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    small_models.write_training(tmp_path, "full")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    state["network.output.weight"][3, 5] = value
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match="output.weight holds numbers that are not finite"):
        load_network(tmp_path)


def test_tokens_are_plain():
    check_tokens(["<blank>", "ä", "\u200c", "▁a"], "tokens.txt")
    for token in ("\x1b[2J", "a\nb", "\x9b", "\ud800", "\u2028"):
        with pytest.raises(UserError, match="tokens.txt: token 1 is .* control character"):
            check_tokens(["<blank>", token], "tokens.txt")
