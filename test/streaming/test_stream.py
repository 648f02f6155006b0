"""What is streamed is what was trained: streams equal the masked forward over the whole utterance."""

import pytest
import torch
from tiny_networks import VOCAB, masked, speech, student

from distill.audio import END_SILENCE


def streamed(network, audio, chunk, left, sizes, ahead=0) -> torch.Tensor:
    """Logits (T, V) of one stream whose audio arrives in pieces of the sizes drawn from an iterator."""
    state = network.initial_state(1, chunk, left, ahead)
    pieces, position = [], 0
    while position < len(audio):
        size = next(sizes)
        pieces.append(network.stream(audio[None, position : position + size], state))
        position += size
    pieces.append(network.stream(audio[None, :0], state, flush=True))
    return torch.cat(pieces, 1)[0]


def random_sizes(seed: int, largest: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.randint(0, largest, (), generator=generator))


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize("chunk_ms", [160, 320, 480, 960])
@pytest.mark.parametrize(("left_ms", "ahead_ms"), [(None, 0), (0, 0), (800, 0), (800, 160), (None, 520)])
@torch.no_grad()
def test_stream_equals_masked_forward(front_end, chunk_ms, left_ms, ahead_ms):
    network = student(front_end)
    ahead = ahead_ms // network.encoder_frame_ms
    chunk = chunk_ms // network.encoder_frame_ms
    left = None if left_ms is None else left_ms // network.encoder_frame_ms
    for seed, (seconds, largest) in enumerate([(0.025, 300), (0.5, 2000), (6.1234, 30000), (7.68, 700)]):
        audio = speech(int(seconds * 16000), seed)
        whole = masked(network, audio, chunk, left, ahead).log_softmax(-1)
        stream = streamed(network, audio, chunk, left, random_sizes(seed, largest), ahead).log_softmax(-1)
        assert stream.shape == whole.shape
        assert (stream - whole).abs().max() < 1e-4


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_ten_minutes(front_end, monkeypatch):
    """Of the mask of 30,000 x 30,000 frames the attention sees some rows at a time: as floats it would take 4 GB."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def by_rows(query, key, value, attn_mask=None):
        if attn_mask is None:
            return attend(query, key, value)
        rows = zip(query.split(1000, 2), attn_mask.split(1000, 2), strict=True)
        return torch.cat([attend(part, key, value, attn_mask=mask) for part, mask in rows], 2)

    network = student(front_end, width=8, layers=2, heads=1, ffn=16)
    chunk, left = 480 // network.encoder_frame_ms, 6000 // network.encoder_frame_ms
    audio = speech(600 * 16000)
    stream = streamed(network, audio, chunk, left, random_sizes(0, 100000))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_rows)
    whole = masked(network, audio, chunk, left)
    assert len(stream) == len(whole) >= network.frames(len(audio))
    assert (stream.log_softmax(-1) - whole.log_softmax(-1)).abs().max() < 1e-4
    assert torch.equal(stream.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_the_mask_matters(front_end):
    """The comparison above would be empty if these networks ignored chunks and history."""
    network = student(front_end)
    audio, lengths = speech(48000)[None], torch.tensor([48000])
    full, chunked, forgetful = (network(audio, lengths, c, n).logits for c, n in ((None, None), (4, None), (4, 2)))
    assert (full - chunked).abs().max() > 0.01
    assert (forgetful - chunked).abs().max() > 0.01
    assert (network(audio, lengths, 4, None, 2).logits - chunked).abs().max() > 0.01


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_every_length_works(front_end):
    network = student(front_end)
    chunk = 160 // network.encoder_frame_ms
    generator = torch.Generator().manual_seed(0)
    # around the edges of windows and chunks, and at random
    edges = [
        1,
        2,
        79,
        80,
        119,
        120,
        121,
        319,
        320,
        399,
        400,
        401,
        719,
        720,
        1239,
        1240,
        1359,
        1360,
        2559,
        2560,
        2639,
        2640,
        3279,
        3280,
        16000,
    ]
    lengths = edges + torch.randint(1, 32000, (40,), generator=generator).tolist()
    for n in lengths:
        audio = speech(n, n)
        whole = masked(network, audio, chunk, 10, n % 3)
        stream = streamed(network, audio, chunk, 10, random_sizes(n, 4000), n % 3)
        assert 0 <= len(stream) - network.frames(n + END_SILENCE) < chunk * network.logits_per_frame
        torch.testing.assert_close(stream, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_every_millisecond_of_two_seconds(front_end):
    network = student(front_end, layers=1)
    chunk = 480 // network.encoder_frame_ms
    audio = speech(32001)
    for n in range(1, 32002, 16):
        whole = masked(network, audio[:n], chunk, 10, n % 3)
        stream = network.stream(audio[None, :n], network.initial_state(1, chunk, 10, n % 3), flush=True)
        assert 0 <= stream.shape[1] - network.frames(n + END_SILENCE) < chunk * network.logits_per_frame
        torch.testing.assert_close(stream[0], whole, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_chunk_comes_out_once_its_look_ahead_is_there_and_not_before():
    for front_end, lookahead in (("cnn", 80), ("fbank", 600)):
        network = student(front_end)
        assert network.lookahead_samples == lookahead
        state = network.initial_state(1, 4, None)
        needed = 4 * network.front_end.hop + lookahead
        audio = speech(needed)[None]
        assert network.stream(audio[:, :-1], state).shape == (1, 0, VOCAB)
        assert network.stream(audio[:, -1:], state).shape == (1, 4 * network.logits_per_frame, VOCAB)


@torch.no_grad()
def test_streams_in_a_batch_do_not_mix():
    network = student()
    audio = torch.stack([speech(20000, 1), speech(20000, 2), torch.zeros(20000)])
    state = network.initial_state(3, 8, 16)
    together = torch.cat([network.stream(audio[:, :11111], state), network.stream(audio[:, 11111:], state, True)], 1)
    for row, samples in zip(together, audio, strict=True):
        torch.testing.assert_close(row, streamed(network, samples, 8, 16, random_sizes(0, 5000)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("left", "ahead"), [(16, 0), (None, 3), (0, 2)])
@torch.no_grad()
def test_streams_that_began_at_different_times_go_on_together(left, ahead):
    network = student()
    audio = [speech(30000, seed) for seed in range(3)]
    states = [network.initial_state(1, 8, left, ahead) for _ in audio]
    logits = [[] for _ in audio]
    batches = set()
    for step in range(-2, 14):
        for number, (samples, state) in enumerate(zip(audio, states, strict=True)):
            start = 2700 * (step + number)  # the first begins last
            if start >= 0:
                network.receive(samples[None, start : start + 2700], state)
        ready = [n for n, state in enumerate(states) if network.has_chunk(state)]
        batches.add(len(ready))
        if ready:
            for n, chunk in zip(ready, network.stream_together([states[n] for n in ready]), strict=True):
                logits[n].append(chunk)
    assert batches >= {1, 2, 3}
    for samples, state, pieces in zip(audio, states, logits, strict=True):
        pieces.append(network.stream(samples[None, :0], state, flush=True))
        alone = streamed(network, samples, 8, left, random_sizes(0, 5000), ahead)
        torch.testing.assert_close(torch.cat(pieces, 1)[0], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_memory_does_not_grow():
    network = student()
    state = network.initial_state(1, 8, 20)
    sizes = set()
    for i in range(40):
        network.stream(speech(8000, i)[None], state)
        tensors = [state.samples, *state.caches.tensors()]
        if i > 2:
            sizes.add(sum(x.untyped_storage().nbytes() for x in tensors[1:]))
            assert tensors[0].untyped_storage().nbytes() <= 4 * (8 * 320 + 80)
    assert len(sizes) == 1


def test_an_empty_chunk_is_refused():
    with pytest.raises(ValueError, match="chunk_frames"):
        student().initial_state(1, 0, None)
