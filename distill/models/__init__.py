"""Networks: the wav2vec 2.0 teacher and the Conformer student, with its front ends and the masks of streaming."""

from distill.models.output import NetworkOutput

__all__ = ["NetworkOutput"]
