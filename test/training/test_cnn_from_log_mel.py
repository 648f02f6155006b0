"""A new teacher's CNN that begins with log-mel features."""

import pytest
import torch
from tiny_training import STUDENT, TEACHER, changed

from distill.checkpoints.load import load_network
from distill.models.teachers import build_teacher
from distill.training.cnn_from_log_mel import log_mel_pairs, train_cnn_on_log_mel


def files_of(world):
    return sorted((world.root / "train").glob("*.wav"))


def test_the_two_log_mel_frames_of_a_pair_begin_within_its_20_ms():
    click = torch.full((1, 16000), 1e-4)
    click[0, 6400 + 200] = 1.0  # 200 samples into frame 20: in the middle of its first log-mel frame
    energy = log_mel_pairs(click).unflatten(-1, (2, 80)).sum(-1)[0]  # (T, 2)
    assert energy.flatten().argmax() == 2 * 20
    assert log_mel_pairs(torch.zeros(1, 400 + 320 * 3)).shape == (1, 3, 160)


@pytest.mark.parametrize("frozen", [True, False])
def test_log_mel_features_become_a_linear_map_of_the_cnn_and_the_layers_stay_as_they_were(world, frozen):
    torch.manual_seed(0)
    network = build_teacher(5, **TEACHER["network_conf"], freeze_cnn=frozen)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    first = train_cnn_on_log_mel(network, files_of(world), 1)
    last = train_cnn_on_log_mel(network, files_of(world), 80)
    assert first > 0.9
    assert last < 0.5
    changed_parts = {
        name.split(".")[1] for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert changed_parts == {"feature_extractor", "feature_projection"}
    extractor = network.encoder.feature_extractor
    assert all(weight.requires_grad != frozen for weight in extractor.parameters())
    assert all(weight.grad is None for weight in network.parameters())
    assert network.freeze_cnn == frozen


def test_a_frozen_cnn_stays_as_log_mel_features_left_it(world, caplog):
    """Also in a training that is resumed, where it is not trained on them again."""
    caplog.set_level("INFO")
    config = changed(TEACHER, network_conf={"freeze_cnn": True}, cnn_log_mel_steps=3, augment_conf={"gain_db": 6})
    trained = world.train("log_mel", config, "--max_epoch", "1")
    assert caplog.text.count("CNN to log-mel: step 3 of 3") == 1
    resumed = world.train("log_mel", config)
    assert caplog.text.count("CNN to log-mel: step 3 of 3") == 1
    plain = world.train("no_log_mel", changed(TEACHER, network_conf={"freeze_cnn": True}), "--max_epoch", "1")
    first, second, other = (
        torch.load(path, weights_only=True)["network.encoder.feature_extractor.conv_layers.3.conv.weight"]
        for path in (trained / "1epoch.pth", resumed / "2epoch.pth", plain / "1epoch.pth")
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert load_network(resumed).network.freeze_cnn


@pytest.mark.parametrize("which", ["student", "init", "no cnn"])
def test_only_the_cnn_of_a_new_teacher_can_begin_so(world, teacher, which, capsys):
    config = {"student": STUDENT, "init": TEACHER, "no cnn": changed(TEACHER, network_conf={"config": {}})}[which]
    if which == "no cnn":
        config["network_conf"]["config"] = {
            **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2),
            "model_type": "wav2vec2-bert", "hidden_size": 24, "intermediate_size": 32,
        }  # fmt: skip
    options = {"student": ["--teacher", str(teacher)], "init": ["--init", str(teacher)], "no cnn": []}[which]
    with pytest.raises(SystemExit) as stopped:
        world.train(f"log_mel_{which}", config, "--cnn_log_mel_steps", "2", *options)
    assert stopped.value.code == 2
    what = "this network has no CNN" if which == "no cnn" else "is for a teacher that begins with random weights"
    assert f"error: cnn_log_mel_steps: {what}; leave it out" in capsys.readouterr().err
