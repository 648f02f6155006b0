"""Lattice-free MMI over the CTC topology and a token n-gram: graphs, exact scores and gradients, losses."""

from distill.lfmmi.denominator_graph import DenominatorGraph
from distill.lfmmi.loss import LFMMILoss

__all__ = ["DenominatorGraph", "LFMMILoss"]
