"""What a student sees in training and validation, and what its loss is made of, through the model ESPnet trains."""

import shutil

import pytest
import torch
from tiny_training import STUDENT, changed, speech_of
from torch.nn import functional as F

from distill.checkpoints.load import checkpoint_path, load_network
from distill.lfmmi import DenominatorGraph, LFMMILoss
from distill.lfmmi.alignment import first_frames
from distill.training import distill_model, loss_terms
from distill.training.distill_model import DistillModel
from distill.training.distill_task import DistillTask
from distill.training.loss_terms import greedy_tokens, pad_tokens

NO_TEACHER = {"target": "transcript", "alpha": 1.0, "beta": 1.0}
LATE_MS = 60  # the samples a frame of the tiny student needs beyond its own 20 ms, rounded up


@pytest.fixture
def build(world):
    """The model of a training with this configuration and these options."""

    def build_model(config, *options) -> DistillModel:
        torch.manual_seed(0)
        arguments = DistillTask.get_parser().parse_args(world.command("unused", config, *options))
        return DistillTask.build_model(arguments)

    return build_model


@pytest.fixture(scope="module")
def eloquent_teacher(teacher, tmp_path_factory):
    """The tiny teacher with large random output weights: its best path has many tokens."""
    directory = tmp_path_factory.mktemp("eloquent_teacher")
    shutil.copy(teacher / "config.yaml", directory)
    state = torch.load(checkpoint_path(teacher), weights_only=True)
    generator = torch.Generator().manual_seed(3)
    state["network.output.weight"] = 5 * torch.randn(state["network.output.weight"].shape, generator=generator)
    torch.save(state, directory / "model.pth")
    return directory


def run(model: DistillModel, speech, lengths, text=None):
    """(network's output, terms of the loss) of a batch; without ``text`` every transcript is one token."""
    outputs = []
    handle = model.network.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    tokens = torch.full((len(speech), 1), 2) if text is None else text
    try:
        _, stats, _ = model(speech, lengths, tokens, (tokens >= 0).sum(1))
    finally:
        handle.remove()
    return outputs[0], stats


def view_ms(model: DistillModel, seconds: float = 2.4) -> tuple[float, float]:
    """(end, start) in ms of the audio that the first and the last frame of an utterance depend on."""
    samples = int(16000 * seconds)
    audio = torch.randn(1, samples, generator=torch.Generator().manual_seed(1)).mul_(0.1).requires_grad_()
    output, _ = run(model, audio, torch.tensor([samples]))
    views = []
    for frame in (0, -1):
        (gradient,) = torch.autograd.grad(output.logits[0, frame].square().sum(), audio, retain_graph=True)
        used = gradient[0].nonzero()[:, 0]
        views.append((float(used[0]) / 16, float(used[-1] + 1) / 16))
    return views[0][1], views[1][0]


def chunked(**conf):
    return changed(STUDENT, distill_conf=NO_TEACHER, chunk_conf=conf)


def test_in_training_a_frame_sees_its_chunk_and_nothing_later(build):
    model = build(chunked(chunk_ms=160)).train()
    end, _ = view_ms(model)
    assert 160 <= end < 160 + LATE_MS
    end, _ = view_ms(build(chunked(chunk_ms=160, full_prob=1.0)).train())
    assert end == pytest.approx(2400, abs=25)


def test_training_draws_every_chunk_length_of_the_range_and_full_context(build):
    model = build(chunked(chunk_ms=[160, 240], full_prob=0.4)).train()
    torch.manual_seed(1)
    ends = [view_ms(model, 0.6)[0] for _ in range(60)]
    drawn = {20 * int(end // 20) for end in ends if end < 500}
    assert drawn == {160, 180, 200, 220, 240}
    full = sum(end >= 500 for end in ends)
    assert 12 <= full <= 36  # 24 expected; less than 1 in 1,000 falls outside


def test_chunks_hop_by_a_part_of_their_length(build):
    """Frames of the first half are put out with the second half as look-ahead, so they see the whole chunk."""
    end, _ = view_ms(build(chunked(chunk_ms=320, hop=0.5, left_ms=0)).train())
    assert 320 <= end < 320 + LATE_MS
    network = build(chunked(chunk_ms=320, hop=0.5)).train()
    seen = []
    network.network.register_forward_pre_hook(lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True)
    view_ms(network)
    assert (seen[0]["chunk_frames"], seen[0]["lookahead_frames"]) == (8, 8)


def test_in_training_history_ends_at_the_left_context(build):
    """Two layers see 2 x 160 ms of history and 2 x 6 frames of convolution before the last chunk."""
    _, start = view_ms(build(chunked(chunk_ms=160, left_ms=160)).train())
    assert 1200 < start < 2400 - 160
    _, nothing_before = view_ms(build(chunked(chunk_ms=160, left_ms=0)).train())
    assert nothing_before > start + 250
    _, everything = view_ms(build(chunked(chunk_ms=160, left_ms=None)).train())
    assert everything < 25


@pytest.mark.parametrize(
    ("chunk_ms", "expected"), [([160, 960], 480), ([160, 320], 320), ([640, 960], 640), (240, 240)]
)
def test_validation_takes_480_ms_or_the_nearest_length_of_the_range(build, chunk_ms, expected):
    model = build(chunked(chunk_ms=chunk_ms, full_prob=0.5)).eval()
    for _ in range(4):
        end, _ = view_ms(model)
        assert expected <= end < expected + LATE_MS


def expected_mmi(world, output, tokens, token_lengths):
    """LF-MMI of each utterance divided by its frames, mean over utterances."""
    criterion = LFMMILoss(DenominatorGraph.load(world.root / "den.npz"), reduction="none")
    losses = criterion(output.logits.log_softmax(-1), output.lengths, tokens, token_lengths)
    return (losses / output.lengths).mean().item()


def test_lfmmi_is_divided_by_the_frames_of_each_utterance(build, world):
    speech, lengths = speech_of(world)
    assert len(set(lengths.tolist())) > 1
    text = torch.tensor([[2, 3, -1]] * len(speech))
    output, stats = run(build(changed(STUDENT, distill_conf=NO_TEACHER)).eval(), speech, lengths, text)
    expected = expected_mmi(world, output, text, torch.full((len(speech),), 2))
    assert stats["loss_mmi"].item() == pytest.approx(expected, rel=1e-4)


def test_divergence_from_the_teacher_is_divided_by_the_frames_of_each_utterance(build, world, eloquent_teacher):
    speech, lengths = speech_of(world)
    config = changed(STUDENT, distill_conf={"alpha": 1.0, "beta": 1.0, "target": "posterior"})
    output, stats = run(build(config, "--teacher", str(eloquent_teacher)).eval(), speech, lengths)
    with torch.no_grad():
        teacher = load_network(eloquent_teacher).network(speech, lengths)
    graph = DenominatorGraph.load(world.root / "den.npz")
    criterion = LFMMILoss(graph, target="posterior", reduction="none")
    student, reference = output.logits.log_softmax(-1), teacher.logits.log_softmax(-1)
    losses = criterion(student, output.lengths, teacher_log_probs=reference[:, : student.shape[1]])
    assert stats["loss_mmi"].item() == pytest.approx((losses / output.lengths).mean().item(), rel=1e-4)


def test_pseudo_labels_are_the_teachers_best_path(build, world, eloquent_teacher):
    speech, lengths = speech_of(world)
    config = changed(STUDENT, distill_conf={"alpha": 1.0, "beta": 1.0, "target": "pseudo"})
    output, stats = run(build(config, "--teacher", str(eloquent_teacher)).eval(), speech, lengths)
    with torch.no_grad():
        teacher = load_network(eloquent_teacher).network(speech, lengths)
    labels = greedy_tokens(teacher.logits, teacher.lengths)
    assert min(map(len, labels)) > 0 and labels != greedy_tokens(output.logits, output.lengths)
    expected = expected_mmi(world, output, *pad_tokens(labels))
    assert stats["loss_mmi"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("target", ["pseudo", "transcript"])
def test_tokens_are_put_out_after_the_teachers_by_the_delay_asked_for(build, world, eloquent_teacher, target):
    """Of the numerator's sequence and of CTC's transcript, wherever the utterance is long enough for it."""
    speech, lengths = speech_of(world)
    with torch.no_grad():
        teacher = load_network(eloquent_teacher).network(speech, lengths)
    text = pad_tokens([ids[:2] for ids in greedy_tokens(teacher.logits, teacher.lengths)])
    sequence = text if target == "transcript" else pad_tokens(greedy_tokens(teacher.logits, teacher.lengths))
    graph = DenominatorGraph.load(world.root / "den.npz")
    conf = {"alpha": 1.0, "beta": 1.0, "target": target, "weight_ctc": 1.0}
    for delay_ms in (0, 60):
        config = changed(STUDENT, distill_conf={**conf, "token_delay_ms": delay_ms})
        model = build(config, "--teacher", str(eloquent_teacher)).eval()
        output, stats = run(model, speech, lengths, text[0])
        earliest = []
        for tokens, token_lengths in (sequence, text):
            frames = first_frames(teacher.logits, teacher.lengths, tokens[:, None], token_lengths[:, None])[:, 0]
            earliest.append(loss_terms.earliest_frames(frames, delay_ms // 20, output.lengths, token_lengths))
        criterion = LFMMILoss(graph, reduction="none")
        mmi = criterion(output.logits.log_softmax(-1), output.lengths, *sequence, earliest=earliest[0]) / output.lengths
        assert stats["loss_mmi"].item() == pytest.approx(mmi.mean().item(), rel=1e-4)
        ctc = loss_terms.ctc(output.logits, output.lengths, *text, earliest[1])
        assert stats["loss_ctc"].item() == pytest.approx(ctc.mean().item(), rel=1e-4)
        unbounded = loss_terms.ctc(output.logits, output.lengths, *text)
        assert (ctc > unbounded).all() if delay_ms else (ctc > unbounded).any()


def test_several_sequences_of_the_teacher_are_bounded_one_by_one(build, world, eloquent_teacher):
    speech, lengths = speech_of(world)
    conf = {"alpha": 1.0, "beta": 1.0, "target": "pseudo", "nbest": 3}
    losses = []
    for bound in (None, 0, 80):
        config = changed(STUDENT, distill_conf={**conf, "token_delay_ms": bound})
        losses.append(run(build(config, "--teacher", str(eloquent_teacher)).eval(), speech, lengths)[1]["loss_mmi"])
    assert losses[0] < losses[1] < losses[2]


AUGMENTED = {"gain_db": 6, "noise_snr_db": [10, 20], "prob": 1.0}


def recorded(model, speech, lengths):
    """The audio that the network gets."""
    audio = []
    handle = model.network.register_forward_pre_hook(lambda _module, arguments: audio.append(arguments[0]))
    try:
        run(model, speech, lengths)
    finally:
        handle.remove()
    return audio[0]


def test_training_audio_is_augmented_and_validation_audio_is_not(build, world):
    speech, lengths = speech_of(world)
    plain = changed(STUDENT, distill_conf=NO_TEACHER)
    model = build({**plain, "augment_conf": AUGMENTED})
    first, second = (recorded(model.train(), speech, lengths) for _ in range(2))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        assert not torch.allclose(a, speech[row], atol=1e-3) and not torch.allclose(a, b, atol=1e-3)
    assert torch.equal(recorded(model.eval(), speech, lengths), speech)
    assert torch.equal(recorded(build(plain).train(), speech, lengths), speech)


def test_a_teacher_gets_the_clean_audio(build, world, online):
    config = changed(STUDENT, distill_conf={"alpha": 1.0, "beta": 0.5, "target": "frame_kl"}, augment_conf=AUGMENTED)
    model = build(config, "--teacher", str(online)).train()
    speech, lengths = (x[:1] for x in speech_of(world))
    speech = speech[:, : int(lengths[0])]
    output, stats = run(model, speech, lengths)
    with torch.no_grad():
        clean = load_network(online).network(speech, lengths).logits
    difference = output.logits - clean
    difference = difference - difference.mean(-1, keepdim=True)  # which softmax ignores
    assert stats["loss_logits"].item() == pytest.approx(difference.square().mean().item(), rel=1e-4)


def test_silence_before_the_audio_is_blank_and_that_around_it_is_not_compared_with_the_teacher(
    build, world, online, monkeypatch
):
    silent = {"gain_db": 0, "noise_snr_db": [100, 100], "prob": 1.0, "silence_s": 1.0}
    config = changed(
        STUDENT, distill_conf={"alpha": 0.5, "beta": 0.5, "target": "pseudo", "weight_ctc": 1.0}, augment_conf=silent
    )
    monkeypatch.setattr(distill_model, "draw_silence", lambda _conf, _frame_ms: (17, 9))
    model = build(config, "--teacher", str(online)).train()
    speech, lengths = speech_of(world)
    output, stats = run(model, speech, lengths)
    with torch.no_grad():
        clean = load_network(online).network(speech, lengths)
    silence = output.logits.shape[1] - clean.logits.shape[1]
    assert silence == 26 and (output.lengths - clean.lengths == silence).all()
    losses = [
        loss_terms.centred_mse(output.logits[:, before:][:, : clean.logits.shape[1]], clean.logits, clean.lengths)
        for before in range(silence + 1)
    ]
    matching = [n for n, loss in enumerate(losses) if loss.mean().item() == pytest.approx(stats["loss_logits"].item())]
    assert matching == [17]
    before = 17
    tokens = torch.full((len(speech), 1), 2)
    heard, frames = output.logits[:, before:], output.lengths - before
    ctc = loss_terms.ctc(heard, frames, tokens, torch.ones(len(speech), dtype=torch.long)).mean()
    assert stats["loss_ctc"].item() == pytest.approx(ctc.item(), rel=1e-4)
    blank = -(output.logits.log_softmax(-1)[:, :before, 0].sum(1) / output.lengths).mean()
    assert stats["loss_silence"].item() == pytest.approx(blank.item(), rel=1e-4)
    weighted = 0.5 * stats["loss_hidden"] + 0.25 * (stats["loss_logits"] + stats["loss_mmi"])
    total = weighted + stats["loss_ctc"] + stats["loss_silence"]
    assert stats["loss"].item() == pytest.approx(total.item(), rel=1e-4)


def test_each_teacher_is_compared_with_its_own_layers_and_projections(build, world, online):
    """Hidden-layer loss of a student against itself, recomputed from its projections."""
    config = changed(STUDENT, distill_conf={"alpha": 0.0, "target": "none", "layer_map": [2, 1]})
    model = build(config, "--teacher", str(online)).eval()
    speech, lengths = speech_of(world)
    output, stats = run(model, speech[:1, : int(lengths[0])], lengths[:1])
    with torch.no_grad():
        teacher = load_network(online).network(speech[:1, : int(lengths[0])], lengths[:1])
    distances = []
    for projection, student, layer in zip(model.criterion.projections, output.hidden, (2, 1), strict=True):
        target = F.layer_norm(teacher.hidden[layer - 1], teacher.hidden[layer - 1].shape[-1:])
        distances.append((projection(student) - target).square().mean())
    assert stats["loss_hidden"].item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-4)
