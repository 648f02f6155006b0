"""A streaming student and audio without words: what training does about the words that it would guess."""

import numpy as np
import pytest
import torch
from tiny_training import HERTZ, STUDENT, TOKENS, changed

from distill.audio import SAMPLE_RATE, SILENT
from distill.streaming.recognizer import StreamingRecognizer
from distill.training.distill_task import DistillTask

STEPS = 400
SENTENCES = (["low", "mid"], ["low", "high"], ["low", "high", "mid"], ["low", "mid", "high"])  # they begin alike
CHUNKS = {"chunk_ms": 160, "left_ms": 960, "full_prob": 0.0}
TRANSCRIPTS = {"target": "transcript", "alpha": 1.0, "beta": 1.0, "weight_ctc": 1.0}


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).normal(size=int(seconds * SAMPLE_RATE))).astype(np.float32)


def sentences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, N) audio of tones, (B,) samples and (B, L) token ids, -1 where there are none."""
    time = np.arange(4000) / SAMPLE_RATE
    tones = {word: 0.3 * np.sin(2 * np.pi * hertz * time) for word, hertz in HERTZ.items()}
    audio = [np.concatenate([tones[word] for word in words]) for words in SENTENCES]
    audio = [torch.from_numpy(samples + noise(len(samples) / SAMPLE_RATE, 0.01)).float() for samples in audio]
    ids = [torch.tensor([TOKENS.index(word) for word in words]) for words in SENTENCES]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(audio, batch_first=True), torch.tensor([len(a) for a in audio]), pad(ids, True, -1)


@pytest.mark.slow
@pytest.mark.parametrize("silence_s", [0.0, 2.0])
def test_thirty_seconds_without_words_give_none_if_the_training_has_silence(world, silence_s):
    """The noise is louder than what decoding takes for silence anyway."""
    augment = {"gain_db": 0, "noise_snr_db": [100, 100], "prob": 1.0, "silence_s": silence_s}
    config = changed(STUDENT, distill_conf=TRANSCRIPTS, chunk_conf=CHUNKS, augment_conf=augment)
    torch.manual_seed(0)
    arguments = DistillTask.get_parser().parse_args(world.command(f"silence_{silence_s}", config))
    model = DistillTask.build_model(arguments).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    speech, lengths, text = sentences()
    for _ in range(STEPS):
        loss, _, _ = model(speech, lengths, text, (text >= 0).sum(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    session = StreamingRecognizer(model.network.eval(), TOKENS, {**config, "token_type": "word"}, 160)
    texts = []
    for audio in (speech[2, : int(lengths[2])].numpy(), noise(30, 2 * SILENT)):
        session.reset()
        session.accept_waveform(audio)
        texts.append(session.finish()["text"])
    assert texts[0].startswith("low high")
    assert (texts[1] == "") == (silence_s > 0)
