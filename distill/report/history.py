"""Losses of a training by term and epoch, from the last checkpoint of ESPnet's trainer."""

from __future__ import annotations

from pathlib import Path

from distill.errors import UserError

# Reported by a training besides time and memory, in the order of the page.
TERMS = {
    "loss": "total loss",
    "loss_hidden": "hidden layers (MSE)",
    "loss_logits": "logits (MSE)",
    "loss_mmi": "LF-MMI, per frame",
    "loss_kl": "KL of frames",
    "loss_ctc": "CTC",
    "ter": "token error rate",
}

Curves = dict[str, dict[str, list[tuple[int, float]]]]  # term -> train or valid -> (epoch, mean over the epoch)


def read_history(directory: Path) -> Curves:
    """Read the losses of a training directory; empty if it has no checkpoint.

    The weights and the optimiser's state in the checkpoint are not read.
    """
    import torch

    path = directory / "checkpoint.pth"
    if not path.is_file():
        return {}
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        epochs = checkpoint["reporter"]["stats"]
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}); train it again") from error
    curves: Curves = {}
    for term in TERMS:
        parts = {
            part: [(epoch, float(of[part][term])) for epoch, of in sorted(epochs.items()) if term in of.get(part, {})]
            for part in ("train", "valid")
        }
        if any(parts.values()):
            curves[term] = parts
    return curves
