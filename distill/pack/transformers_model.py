"""A trained network as a model of the library transformers: AutoModelForCTC and pipelines load what pack writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from distill.checkpoints.load import LoadedNetwork, build_network
from distill.models.fbank import FbankFrontEnd
from distill.models.student import Student
from distill.recognition.networks import chunk_of, student_outputs
from distill.training.loss_terms import ctc

BLANK = 0


class DistillW2V2Config(PreTrainedConfig):
    """Configuration of :class:`DistillW2V2ForCTC`.

    Args:
        training: of the training: network, network_conf, chunk_conf.
        vocab_size: tokens, blank first.
        chunk_ms: chunk length at which a streaming student recognises, as it would in a stream; None: full context.
    """

    model_type = "distillw2v2"

    def __init__(
        self, training: dict[str, Any] | None = None, vocab_size: int = 0, chunk_ms: int | None = None, **others: Any
    ) -> None:
        self.training = training or {}
        self.vocab_size = vocab_size
        self.chunk_ms = chunk_ms
        super().__init__(**others)


class DistillW2V2ForCTC(PreTrainedModel):
    """A teacher or student with its prediction layer."""

    config_class = DistillW2V2Config
    base_model_prefix = ""
    main_input_name = "input_values"

    def __init__(self, config: DistillW2V2Config) -> None:
        super().__init__(config)
        self.network = build_network(config.training, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Constants that are in no checkpoint; transformers calls this after it has loaded the weights."""
        if isinstance(module, FbankFrontEnd):
            module.set_constants()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits of audio, and with labels the CTC loss.

        Args:
            input_values: (B, N) audio in [-1, 1] at 16 kHz.
            attention_mask: (B, N), 1 where there is audio; None: everywhere.
            labels: (B, U) token ids, padded with a negative number; None: no loss.

        Returns:
            ``logits`` (B, T, V), blank for certain beyond an utterance's end, and ``loss``, a mean over utterances.
        """
        samples = input_values.new_full((len(input_values),), input_values.shape[1], dtype=torch.long)
        lengths = samples if attention_mask is None else attention_mask.sum(1)
        chunk = chunk_of(LoadedNetwork(self.network, [], self.config.training), self.config.chunk_ms)
        if chunk is not None and isinstance(self.network, Student):
            output = student_outputs(self.network, input_values, lengths, [chunk])[chunk]
        else:
            output = self.network(input_values, lengths)
        frames = output.lengths.to(output.logits.device)
        loss = None
        if labels is not None:
            loss = ctc(output.logits, output.lengths, labels, (labels >= 0).sum(1)).mean()
        beyond = torch.arange(output.logits.shape[1], device=frames.device) >= frames[:, None]
        certain = torch.full_like(output.logits[0, 0], -1e4)
        certain[BLANK] = 1e4
        return CausalLMOutput(loss=loss, logits=torch.where(beyond[:, :, None], certain, output.logits))
