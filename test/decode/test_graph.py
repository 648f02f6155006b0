"""The decoding graph that is made directly, against the composition of its parts; how it is kept and shared."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch
from composed_graph import composed

from distill.decode import graph_file, tlg_graph
from distill.decode.estimate_lm import write_arpa
from distill.decode.tlg_graph import GraphBuilder
from distill.decode.wfst import WfstSearch

TOKENS = ["<blank>", "a", "b", "c", "<space>"]


def random_task(seed: int, spaces: bool, folder: Path) -> tuple[Path, dict, list[str]]:
    """An n-gram, a lexicon with homophones and spellings that begin others, and tokens."""
    generator = random.Random(seed)
    letters = range(1, 4)
    words = [f"w{number}" for number in range(9)]
    spelt = {word: [tuple(generator.choices(letters, k=generator.randint(1, 4)))] for word in words}
    for word in generator.sample(words, 2):
        spelt[word].append(tuple(generator.choices(letters, k=2)))
    sentences = [generator.choices([*words, "unspelt"], k=generator.randint(1, 6)) for _ in range(20)]
    write_arpa(sentences, generator.choice((1, 2, 3, 4)), folder / "lm.arpa")
    return folder / "lm.arpa", {w: list(dict.fromkeys(s)) for w, s in spelt.items()}, TOKENS if spaces else TOKENS[:4]


def recognised(graph, logits: torch.Tensor, beam: float) -> list[tuple[list[str], float]]:
    search = WfstSearch(graph, beam, nbest=3)
    search.accept(logits)
    return [([word.text for word in hypothesis.words or ()], hypothesis.score) for hypothesis in search.finish()]


@pytest.mark.parametrize("spaces", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_it_decodes_as_the_composition_does(tmp_path, seed, spaces):
    lm, lexicon, tokens = random_task(seed, spaces, tmp_path)
    weight, bonus = (0.7, 0.4) if seed % 2 else (1.3, -0.5)
    graphs = GraphBuilder(lm, lexicon, tokens).build(weight, bonus), composed(lm, lexicon, tokens, weight, bonus)
    for sample in range(6):
        generator = torch.Generator().manual_seed(100 * seed + sample)
        logits = 2.5 * torch.randn(12, len(tokens), generator=generator)
        ours, expected = (recognised(graph, logits, 60.0) for graph in graphs)
        for (words, score), (expected_words, expected_score) in zip(ours, expected, strict=True):
            assert score == pytest.approx(expected_score, abs=0.03)  # determinisation rounds to 1/1024
            if all(abs(score - other) > 0.1 for other_words, other in expected if other_words != expected_words):
                assert words == expected_words


def test_words_and_costs_come_as_early_as_the_tokens_allow(tmp_path):
    """Of "abc" and "acb" the first token already costs the likelier word's price, and the second tells the word."""
    write_arpa([["abc"], ["abc"], ["acb"]], 1, tmp_path / "lm.arpa")
    lexicon = {"abc": [(1, 2, 3)], "acb": [(1, 3, 2)]}
    builder = GraphBuilder(tmp_path / "lm.arpa", lexicon, TOKENS[:4])
    (begin, il, ol, cost, to), _, _ = builder._lexicon_and_lm()
    state = int(to[begin[0]])  # behind the start's arc
    (first,) = range(begin[state], begin[state + 1])
    second = {int(ol[arc]): float(cost[arc]) for arc in range(begin[to[first]], begin[to[first] + 1])}
    assert il[first] == 2 and ol[first] == 0 and cost[first] == pytest.approx(-np.log((2 + 4 / 4) / (6 + 3)), abs=0.2)
    assert sorted(second) == [1, 2] and abs(second[1]) < 1e-6 < second[2]


def scores(arguments: tuple[Path, dict, list[str], float]) -> list[tuple[list[str], float]]:
    lm, lexicon, tokens, weight = arguments
    logits = 2.5 * torch.randn(12, len(tokens), generator=torch.Generator().manual_seed(0))
    return recognised(GraphBuilder(lm, lexicon, tokens).build(weight), logits, 30.0)


def test_the_graph_is_made_once_and_weights_are_applied_to_it(tmp_path, monkeypatch):
    lm, lexicon, tokens = random_task(0, False, tmp_path)
    fresh = {weight: scores((lm, lexicon, tokens, weight)) for weight in (0.2, 0.9)}
    assert fresh[0.2] != fresh[0.9]
    monkeypatch.setattr(GraphBuilder, "_lexicon_and_lm", lambda self: pytest.fail("made again"))
    for weight in (0.9, 0.2, 0.9):
        assert scores((lm, lexicon, tokens, weight)) == fresh[weight]
    for number in range(6):
        scores((lm, lexicon, tokens, 0.1 * number))
    assert len(list(tmp_path.glob("lm.arpa.graphs/*_*.fst"))) == tlg_graph.KEPT


def test_another_n_gram_or_lexicon_has_another_graph(tmp_path):
    lm, lexicon, tokens = random_task(0, False, tmp_path)
    names = {GraphBuilder(lm, lexicon, tokens)._name}
    names.add(GraphBuilder(lm, {**lexicon, "w0": [(1, 1, 1, 1, 1)]}, tokens)._name)
    names.add(GraphBuilder(lm, lexicon, [*tokens, "<space>"])._name)
    write_arpa([["w1"]], 2, lm)
    names.add(GraphBuilder(lm, lexicon, tokens)._name)
    assert len(names) == 4


def test_of_jobs_that_begin_together_one_makes_the_graph(tmp_path, monkeypatch):
    """Threads here: the lock is one of files."""
    lm, lexicon, tokens = random_task(1, True, tmp_path)
    made = []
    real = GraphBuilder._write
    monkeypatch.setattr(
        GraphBuilder, "_write", lambda self, path: made.append(path) or time.sleep(0.3) or real(self, path)
    )
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(scores, [(lm, lexicon, tokens, 0.6)] * 2)
    assert first == second and len(made) == 1


def test_where_nothing_can_be_written_the_graph_is_made_for_the_process(tmp_path, monkeypatch):
    lm, lexicon, tokens = random_task(2, False, tmp_path)
    expected = scores((lm, lexicon, tokens, 0.5))
    kept = [path.read_bytes() for path in sorted(tmp_path.glob("lm.arpa.graphs/*.fst"))]
    monkeypatch.setattr(tlg_graph, "_writable", lambda folder: False)
    monkeypatch.setattr(graph_file, "_read_mode", lambda: None)  # nor mapped
    assert scores((lm, lexicon, tokens, 0.5)) == expected
    assert [path.read_bytes() for path in sorted(tmp_path.glob("lm.arpa.graphs/*.fst"))] == kept


def test_a_graph_is_mapped_and_not_read(tmp_path):
    states, arcs = graph_file.create(tmp_path / "x.fst", 2_000_000, 2_000_000)
    states["final"], states["arcs"] = 1.5, 1
    states["begin"] = arcs["target"] = np.arange(2_000_000)
    states.flush(), arcs.flush()
    before = anonymous_kb()
    fst = graph_file.read(tmp_path / "x.fst")
    assert anonymous_kb() - before < 10_000  # of 72 MB
    assert fst.num_states == 2_000_000 and fst.final(7).value == 1.5
    assert isinstance(kaldifst.StdConstFst.read(str(tmp_path / "x.fst")), kaldifst.StdConstFst)


def anonymous_kb() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1])
