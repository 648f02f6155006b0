"""The pages of the documentation: links, tests that they name, figures that they quote, and completeness."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from distill import configuration

ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [*TOP, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("egs2/*/asr_distill1/README.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


TEST_NAMED = re.compile(r"(test/[\w/]+\.py)(?:::(test_\w+))?")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_documents_name_are_there(document):
    for path, name in TEST_NAMED.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{document}: {path}"
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{document}: {path}::{name}"


@pytest.mark.parametrize("name", ["README.md", "docs/guarantees.md"])
def test_promises_name_their_tests(name):
    """At least one test is named in the README's section on streaming, and one for every guarantee."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "README.md":
        (section,) = re.findall(r"(?ms)^## Streaming output.*?(?=^## )", text)
        assert "test/streaming/test_stream.py::test_stream_equals_masked_forward" in section
        return
    promised = text.split("## What is not guaranteed")[0]
    rows = [line for line in promised.splitlines() if re.match(r"\| (?!what holds|---)", line) and "|---" not in line]
    assert len(rows) >= 15
    for row in rows:
        assert TEST_NAMED.search(row) or "`make " in row, row


def table_row(path: str, first_cell: str, start: int = 0) -> list[str]:
    """Cells of the first row of a Markdown file, from a position on, that begins with a cell."""
    text = (ROOT / path).read_text(encoding="utf-8")[start:]
    row = next(line for line in text.splitlines() if line.startswith(f"| {first_cell} |"))
    return [cell.strip(" *") for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("student", ["S5", "F"])
def test_the_readmes_size_and_speed_are_those_of_the_performance_page(student):
    size, int8_size, _, speed, int8_speed = table_row("docs/performance.md", student)[1:6]
    assert table_row("README.md", f"{student}, float32")[1:] == [size.split()[-1], speed.split()[0]]
    if student == "F":
        assert table_row("README.md", "F, int8")[1:] == [int8_size.split()[-1], int8_speed.split()[0]]


@pytest.mark.parametrize(
    ("row", "test_set"),
    [("speakers of the training", "test"), ("a speaker who is not in the training set", "test_unseen")],
)
def test_the_readmes_word_error_rates_are_those_of_the_results(row, test_set):
    results = "egs2/fsdd/asr_distill1/RESULTS.md"
    text = (ROOT / results).read_text(encoding="utf-8")
    starts = [heading.start() for heading in re.finditer(rf"(?m)^## {test_set} \(", text)]
    assert len(starts) == 3
    systems = "teacher | full", "student_stream | 160 ms", "student_stream | 480 ms"
    rows = [[table_row(results, system, start) for start in starts] for system in systems]
    teachers, at_160, at_480 = ([row[2].split()[0] for row in of_system] for of_system in rows)
    errors = [[sum(map(int, row[3].split("/"))) for row in of_system] for of_system in rows]
    loss = sum(100 * (student / teacher - 1) for teacher, student in zip(errors[0], errors[2], strict=True)) / 3
    assert len(set(teachers)) == 1
    assert table_row("README.md", row)[1:] == [teachers[0], ", ".join(at_160), ", ".join(at_480), f"{loss:+.0f} %"]


@pytest.mark.parametrize("recipe", ["mini_librispeech", "speechocean762"])
def test_the_error_rates_of_a_recipes_readme_are_those_of_its_results(recipe):
    folder = f"egs2/{recipe}/asr_distill1"
    results = (ROOT / folder / "RESULTS.md").read_text(encoding="utf-8")
    start = results.index("\n## test (")
    words = int(re.search(r"(\d+) words\)", results[start:])[1])
    systems = {
        "teacher, full context, 5.6 M parameters": "teacher | full",
        "student_full, 2.1 M": "student_full | full",
        "the same without a teacher": "student_full_no_kd | full",
        "student_stream, full context": "student_stream | full",
    }
    systems |= {f"student_stream, {ms} ms": f"student_stream | {ms} ms" for ms in (160, 320, 480, 960)}
    for row, system in systems.items():
        shown = table_row(f"{folder}/README.md", row)[1:]
        for decoder, (wer, loss) in {"greedy": shown[:2], "wfst": shown[2:]}.items():
            cells = table_row(f"{folder}/RESULTS.md", f"{system} | {decoder}", start)
            assert wer == f"{100 * sum(map(int, cells[4].split('/'))) / words:.1f}", (row, decoder)
            assert loss == cells[5] or (loss, cells[5]) == ("", "-"), (row, decoder)


def test_the_method_page_lists_every_key_of_a_training():
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    sections = [
        kind
        for kind in vars(configuration).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == configuration.__name__
    ]
    assert len(sections) >= 3
    for key in (field.name for section in sections for field in dataclasses.fields(section)):
        assert f"`{key}`" in text, key


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_are_there(document):
    """Paths in backquotes; local/ may be that of the document's recipe."""
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:distill|local|utils|egs2|test)/[\w/.]+\.\w+)`", text):
        places = [ROOT, document.parent, ROOT / "egs2/TEMPLATE/asr_distill1"]
        assert any((place / path).exists() for place in places), f"{document}: {path}"


def test_extras_that_documents_name_are_those_of_setup_py():
    for document in DOCUMENTS:
        for extra in re.findall(r"pip install ['\"]?\.\[(\w+)\]", document.read_text(encoding="utf-8")):
            assert f'"{extra}": [' in (ROOT / "setup.py").read_text(encoding="utf-8"), f"{document}: {extra}"


def test_make_bench_runs_what_the_performance_page_shows():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nbench: env\n")[1].split("\nclean:")[0]
    benchmarks = set(re.findall(r"\bbench (\w+)", recipe))
    assert benchmarks == json.loads((ROOT / "docs/performance.json").read_text(encoding="utf-8")).keys()
    assert all((ROOT / f"distill/bench/{name}.py").is_file() for name in benchmarks)


def test_the_performance_page_is_what_its_figures_give(tmp_path):
    from distill.bench import page

    for name, report in json.loads((ROOT / "docs/performance.json").read_text(encoding="utf-8")).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")
    page.main(["--results", str(tmp_path), "--output", str(tmp_path / "page/performance.md")])
    expected, written = (
        re.sub(r"in one run on \d+ \w+ \d+", "", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "page/performance.md", ROOT / "docs/performance.md")
    )
    assert written == expected


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page


def test_the_layout_of_contributing_is_that_of_the_layers():
    """Every module and folder of distill/ in the order in which they may import each other."""
    (contract,) = (
        contract
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    level = {name.strip(): height for height, row in enumerate(reversed(contract["layers"])) for name in row.split("|")}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("Beside the package")[0]
    cells = re.findall(r"(?m)^\| ((?:`[\w.]+(?:\.py|/)`(?:, )?)+) \|", text)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)(?:\.py|/)`", cell)]
    assert set(listed) == level.keys()
    heights = [level[name] for name in listed]
    assert heights == sorted(heights)


@pytest.mark.parametrize(("page", "others"), [("docs/server.md", set()), ("docs/recognition.md", {"file"})])
def test_messages_in_the_documents_have_the_keys_of_results(page, others):
    from distill.streaming.recognizer import Result, TokenResult

    (block,) = re.findall(r"(?ms)^```json\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"))
    message = json.loads(block)
    assert message.keys() == Result.__annotations__.keys() | others
    assert all(token.keys() == TokenResult.__annotations__.keys() for token in message["tokens"])


def test_messages_of_the_troubleshooting_page_are_printed_somewhere():
    source = "".join(
        path.read_text()
        for pattern in (
            "distill/**/*.py",
            "distill/**/*.js",
            "local/*.sh",
            "egs2/TEMPLATE/asr_distill1/*.sh",
            "utils/*.sh",
            "utils/*.py",
        )
        for path in ROOT.glob(pattern)
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]*)`", cell)]
    assert len(messages) > 25
    for message in messages:
        if message in ("train.log", "CUDA out of memory"):  # torch's own
            continue
        for words in re.split(r"\.\.\.|[\d.]*\d|data/train|of the words|\b[NM]\b", message):
            assert words.strip() in source, (message, words)
