"""Write the decoding graph of a model as files for Kaldi's decoders."""

from __future__ import annotations

import os
from pathlib import Path

import kaldifst

from distill.checkpoints.load import read_config
from distill.decode.settings import DecodeConf, graph_builder
from distill.errors import UserError
from distill.files import atomic_write, name_beside


def write_decoding_graph(model_dir: Path, conf: DecodeConf, output: Path) -> int:
    """Write CTC topology ∘ lexicon ∘ n-gram in OpenFst's binary format, and its symbol tables.

    Args:
        model_dir: directory of a trained teacher or student, or a packed model; its tokens are the input labels.
        conf: settings of the decoder wfst: n-gram, its weight, lexicon.
        output: directory for ``TLG.fst``, ``words.txt`` (output labels) and ``tokens.txt`` (input labels: a token's id
            + 1, as 0 is epsilon).

    Returns:
        number of states.
    """
    config = read_config(model_dir)
    token_list = config["token_list"]
    graph = graph_builder(conf, token_list, config).build(conf.lm_weight, conf.word_bonus)
    output.mkdir(parents=True, exist_ok=True)
    for name, symbols in (("words.txt", graph.words), ("tokens.txt", ["<eps>", *token_list])):
        with atomic_write(output / name) as stream:
            stream.writelines(f"{symbol} {label}\n" for label, symbol in enumerate(symbols))
    beside = name_beside(output / "TLG.fst")
    try:
        # Not every program reads the constant kind that our decoder maps into memory
        if not kaldifst.StdVectorFst(graph.fst).write(str(beside)):
            raise UserError(f"{output / 'TLG.fst'}: cannot be written; make room on its disk")
        os.replace(beside, output / "TLG.fst")
    finally:
        beside.unlink(missing_ok=True)
    return graph.fst.num_states
