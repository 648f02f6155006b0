"""The teacher: what layer i means, that padding changes nothing, and loading without a network."""

import pytest
import torch
from tiny_networks import TEACHER, VOCAB, batch, teacher
from transformers import HubertModel, Wav2Vec2Model, WavLMModel

from distill.errors import UserError
from distill.models.teacher import Teacher

POST_NORM = {"do_stable_layer_norm": False}
HUBERT, WAVLM = {"model_type": "hubert"}, {"model_type": "wavlm"}
GROUP = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}


@pytest.mark.parametrize("changes", [{}, POST_NORM, GROUP, HUBERT, WAVLM])
@torch.no_grad()
def test_agrees_with_hugging_face(changes):
    network = teacher(**changes)
    audio, lengths = batch([8000, 8000])
    output = network(audio, lengths)
    reference = network.encoder(audio, output_hidden_states=True)
    expected = network.output(reference.last_hidden_state)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
    assert len(output.hidden) == 3
    # hidden_states[0] is what enters layer 1; the meaning of its last entry differs between versions.
    for i in (1, 2):
        torch.testing.assert_close(output.hidden[i - 1], reference.hidden_states[i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_layer_comes_before_the_final_norm_in_stable_layer_norm_models():
    network = teacher()
    norm = network.encoder.encoder.layer_norm
    norm.weight.mul_(3)
    audio, lengths = batch([8000])
    output = network(audio, lengths)
    torch.testing.assert_close(network.output(norm(output.hidden[-1])), output.logits, atol=1e-5, rtol=0)
    assert not torch.allclose(norm(output.hidden[-1]), output.hidden[-1], atol=0.1)


@torch.no_grad()
def test_the_last_layer_is_the_output_in_post_norm_models():
    network = teacher(**POST_NORM)
    output = network(*batch([8000]))
    torch.testing.assert_close(network.output(output.hidden[-1]), output.logits)


@torch.no_grad()
def test_layer_i_is_the_output_of_the_ith_layer():
    """Making layers 2 and 3 do nothing must leave hidden 1 = hidden 2 = hidden 3, and hidden 1 as it was."""
    network = teacher()
    audio, lengths = batch([8000])
    before = network(audio, lengths).hidden
    for layer in network.encoder.encoder.layers[1:]:
        for p in (*layer.attention.out_proj.parameters(), *layer.feed_forward.output_dense.parameters()):
            p.zero_()
    after = network(audio, lengths).hidden
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], after[0])
    torch.testing.assert_close(after[2], after[0])
    assert not torch.allclose(before[1], before[0], atol=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("changes", [{}, POST_NORM, HUBERT, WAVLM])
@torch.no_grad()
def test_padding_and_batch_change_nothing(changes, normalize):
    torch.manual_seed(2)
    network = Teacher(VOCAB, {**TEACHER, **changes}, normalize=normalize).eval()
    samples = [16000, 300, 7777, 1200]
    audio, lengths = batch(samples)
    together = network(audio, lengths)
    wider = network(torch.nn.functional.pad(audio, (0, 5000)), lengths)
    for b, n in enumerate(samples):
        alone = network(audio[b : b + 1, :n], lengths[b : b + 1])
        frames = network.frames(n)
        assert together.lengths[b] == alone.lengths[0] == frames
        for output in (together, wider):
            torch.testing.assert_close(output.logits[b, :frames], alone.logits[0, :frames], atol=1e-5, rtol=0)
            for actual, reference in zip(output.hidden, alone.hidden, strict=True):
                torch.testing.assert_close(actual[b, :frames], reference[0, :frames], atol=1e-5, rtol=0)


def test_normalisation_takes_away_level_and_offset():
    torch.manual_seed(2)
    network = Teacher(VOCAB, TEACHER, normalize=True).eval()
    audio, lengths = batch([8000])
    with torch.no_grad():
        difference = network(audio, lengths).logits - network(0.2 * audio + 0.1, lengths).logits
    assert difference.abs().max() < 1e-3


def test_masks_time_in_training_only():
    network = teacher(mask_time_prob=0.5, mask_time_length=4, hidden_dropout=0.0, activation_dropout=0.0,
                      feat_proj_dropout=0.0, final_dropout=0.0)  # fmt: skip
    audio, lengths = batch([8000])
    evaluated = network(audio, lengths).logits
    torch.testing.assert_close(network(audio, lengths).logits, evaluated)
    network.train()
    assert not torch.allclose(network(audio, lengths).logits, evaluated, atol=1e-3)
    short = network(*batch([900])).logits  # two frames, shorter than a mask
    assert short.shape[1] == 2
    assert len(network(audio, lengths).hidden) == 3


def test_layers_are_never_dropped():
    network = teacher(layerdrop=0.9).train()
    audio, lengths = batch([4000])
    assert all(len(network(audio, lengths).hidden) == 3 for _ in range(5))


def test_gradients_reach_the_cnn_unless_it_is_frozen():
    audio, lengths = batch([4000, 2000])
    for frozen in (False, True):
        network = Teacher(VOCAB, TEACHER, freeze_cnn=frozen).train()
        network(audio, lengths).logits.square().sum().backward()
        gradients = [p.grad for p in network.encoder.feature_extractor.parameters()]
        assert all((g is None) == frozen for g in gradients)
        assert network.output.weight.grad is not None


@pytest.mark.parametrize(("changes", "kind"), [({}, Wav2Vec2Model), (HUBERT, HubertModel), (WAVLM, WavLMModel)])
def test_loads_a_local_directory(tmp_path, changes, kind):
    source = teacher(**changes)
    source.encoder.save_pretrained(tmp_path)
    loaded = Teacher(VOCAB, tmp_path).eval()
    loaded.output.load_state_dict(source.output.state_dict())
    audio, lengths = batch([4000])
    assert isinstance(loaded.encoder, kind)
    torch.testing.assert_close(loaded(audio, lengths).logits, source(audio, lengths).logits)
    # the configuration alone describes the network, for checkpoints that hold the weights themselves
    again = Teacher(VOCAB, loaded.config.to_diff_dict()).eval()
    again.load_state_dict(loaded.state_dict())
    torch.testing.assert_close(again(audio, lengths).logits, source(audio, lengths).logits)


def test_a_missing_or_broken_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="not found"):
        Teacher(VOCAB, tmp_path / "nowhere")
    teacher().encoder.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("wav2vec2", "bert"))
    with pytest.raises(UserError, match="'bert' is not a teacher"):
        Teacher(VOCAB, tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        Teacher(VOCAB, tmp_path)
