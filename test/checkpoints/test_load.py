"""What the configuration alone says of a network is what the network says of itself."""

import pytest
import yaml
from tiny_networks import CHANNELS, TEACHER, VOCAB, student, teacher

from distill.checkpoints.load import network_shape
from distill.configuration import FRAME_MS, student_frame_ms
from distill.errors import UserError


@pytest.mark.parametrize("front_end", sorted(FRAME_MS))
def test_the_frame_length_of_a_front_end_is_that_of_the_built_student(front_end):
    for conf in ({"front_end": front_end}, {"front_end": front_end, "logits_per_frame": 1}):
        network = student(**conf)
        assert student_frame_ms(conf) == (network.frame_ms, network.encoder_frame_ms)


def test_an_unknown_front_end_has_no_frame_length():
    with pytest.raises(UserError, match="front_end: 'mfcc' is neither cnn nor fbank"):
        student_frame_ms({"front_end": "mfcc"})


@pytest.mark.parametrize("kind", ["teacher", "cnn", "fbank"])
def test_shape_from_the_configuration_is_that_of_the_built_network(tmp_path, kind):
    if kind == "teacher":
        network = teacher()
        conf = {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}
        layers = network.config.num_hidden_layers
    else:
        network = student(kind)
        conf = {"front_end": kind, "width": 32, "layers": 3}
        layers = len(network.blocks)
    config = {"network": "teacher" if kind == "teacher" else "student", "network_conf": conf}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "token_list": ["x"] * VOCAB}))
    assert network_shape(tmp_path) == (layers, network.width, network.frame_ms, network.encoder_frame_ms)
