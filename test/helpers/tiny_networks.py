"""Networks small enough for tests, with weights from a fixed seed."""

import torch

from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.recognition.networks import student_outputs

VOCAB = 11
CHANNELS = (8, 8, 12, 12, 16, 16, 16)
TEACHER = {
    "conv_dim": CHANNELS,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TALKATIVE_SEED = 5  # a student whose outputs have every token, spaces and blanks among them


def student(front_end: str = "cnn", seed: int = 1, **changes) -> Student:
    """A student in evaluation mode, with weights large enough that differences show."""
    torch.manual_seed(seed)
    conf = {"channels": CHANNELS} if front_end == "cnn" else {"channels": 24}
    arguments = {"front_end_conf": conf, "width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7, **changes}
    network = Student(VOCAB, front_end, **arguments)
    with torch.no_grad():
        network.output.weight.mul_(3)
        for module in network.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)  # as large as Xavier's
    return network.eval()


def teacher(**changes) -> Teacher:
    """A teacher in evaluation mode; ``changes`` to its configuration."""
    torch.manual_seed(2)
    return Teacher(VOCAB, {**TEACHER, **changes}).eval()


def speech(samples: int, seed: int = 0) -> torch.Tensor:
    """(samples,) of noise whose level changes."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    return 0.1 * noise * (1.5 + torch.sin(torch.arange(samples) / 3000.0))


def batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded audio (B, N) and (B,) lengths."""
    rows = [speech(n, seed) for seed, n in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(lengths)


def masked(network: Student, audio: torch.Tensor, chunk: int, left: int | None = None, ahead: int = 0) -> torch.Tensor:
    """Logits (T, V) of the masked network over audio (n,) and the silence that ends its stream."""
    setting = chunk, left, ahead
    output = student_outputs(network, audio[None], torch.tensor([len(audio)]), [setting])[setting]
    return output.logits[0, : output.lengths[0]]
