"""Kaldi data directories: read, checked and written; corpora of the recipes; lexicons and tokens."""
