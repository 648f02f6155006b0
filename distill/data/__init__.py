"""Corpora that recipes make, and the check of any Kaldi data directory."""
