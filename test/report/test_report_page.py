"""The page of an experiment: what it says, that it needs nothing else, and that it goes without what is missing."""

import asyncio
import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import small_experiment
import soundfile
import torch
from browser import CHROMIUM, browse
from PIL import Image

from distill.audio import read_audio
from distill.bin import report
from distill.report import figures
from distill.report.alignment import Alignment, chosen, place_rows
from distill.report.history import read_history
from distill.report.plots import Mark, Scale
from distill.report.similarity import linear_cka
from distill.report.worst_utterances import aligned
from distill.streaming.recognizer import Recognizer


class Elements(HTMLParser):
    """Start tags with their attributes, and whether every element is closed in its turn."""

    VOID = {"meta", "line", "rect", "path", "circle", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def exp(tmp_path_factory) -> Path:
    return small_experiment.make(tmp_path_factory.mktemp("small"))


def page_of(exp: Path, *options: str) -> str:
    report.main(["--expdir", str(exp), "--data", str(exp.parent / "dump/raw"), *options])
    return (exp / "report/index.html").read_text()


@pytest.fixture(scope="module")
def page(exp) -> str:
    return page_of(exp, "--num_errors", "3", "--num_utts", "2")


def test_says_the_result_first(exp, page):
    rows = json.loads((exp / "results.json").read_text())["rows"]
    row = next(r for r in rows if (r["system"], r["latency_ms"], r["test_set"]) == ("student_stream", 480, "test"))
    teacher = next(r for r in rows if (r["system"], r["test_set"]) == ("teacher", "test"))
    heading = re.search(r"<h1>(.*?)</h1>", page).group(1)
    assert heading.startswith("4.1× smaller and streaming at 480 ms:")
    assert f"{row['wer']:.2f} % of the words" in heading and f"teacher has {teacher['wer']:.2f} %" in heading
    for r in rows:
        assert f"<b>{r['wer']:.2f}</b>" in page
    assert page.count('<tr class="main">') == 1


def test_needs_no_other_file(page):
    elements = Elements(page)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
    assert not elements.all("script") and not elements.all("link")
    assert "url(" not in page and "@import" not in page
    assert all("aria-label" in attributes for tag in ("svg", "audio") for attributes in elements.all(tag))
    assert all("scope" in attributes for attributes in elements.all("th"))


def test_every_section_is_there(page):
    sections = [attributes["id"] for attributes in Elements(page).all("section")]
    assert sections == ["results", "latency", "size", "export", "training", "layers", "alignment", "errors", "about"]
    assert {attributes["href"][1:] for attributes in Elements(page).all("a")} == set(sections)
    for output in ("hidden layers (MSE)", "LF-MMI, per frame", "published: 8× faster, 12× smaller", "teacher layer"):
        assert output in page


def test_experiments_beside_it_join_the_plot_of_sizes(exp, tmp_path, capsys):
    shutil.copytree(exp.parent, tmp_path / "some")
    results = json.loads((exp / "results.json").read_text())
    changes = {"exp_large": {"params": 3_400_000, "wer": 1.25}, "exp_other_words": {"words": 7}, "exp_other_set": {}}
    for name, change in changes.items():
        rows = [row | (change if row["system"] == "student_stream" else {}) for row in results["rows"]]
        rows = [row | ({"words": 7} if name == "exp_other_words" else {}) for row in rows]
        rows = [row | ({"test_set": "x"} if name == "exp_other_set" else {}) for row in rows]
        (tmp_path / "some" / name).mkdir()
        (tmp_path / "some" / name / "results.json").write_text(json.dumps({**results, "rows": rows}))
    page = page_of(tmp_path / "some/exp", "--num_utts", "0", "--num_alignments", "0")
    assert "WER against size" in page
    assert "exp_large, streaming student, 480 ms: 3.4 M parameters, 1.25 %" in page
    assert "exp, streaming student, 480 ms: 0.34 M parameters" in page and "exp_other_set," not in page
    assert "exp_other_words," not in page
    assert "exp_other_words is left out of the sizes: its test has other utterances" in capsys.readouterr().err


def test_one_experiment_has_no_plot_of_sizes(page):
    assert "WER against size" not in page


def test_an_alignment_has_the_tokens_at_their_times(exp, page):
    """The drawing against a stream of its own; tokens of untrained networks, at least one of each."""
    drawing = re.search(r'<svg class="drawing" viewBox="0 0 ([\d.]+).*?</svg>', page, re.DOTALL)
    name, description = re.search(r'aria-label="(test-\d+): (.*?)"', drawing.group(0)).groups()
    audio = read_audio(str(exp.parent / f"dump/raw/test/{name}.wav"))
    stream = Recognizer.from_pretrained(exp / "student_stream", 480).create_stream()
    arrived, expected = 0, []
    for start in range(0, len(audio), 160):
        piece = audio[start : start + 160]
        arrived += len(piece)
        stream.accept(piece)
        for result in stream.decode():
            expected += [(token, arrived / 16000) for token in result["tokens"][len(expected) :]]
    stream.finish()
    for result in stream.decode():
        expected += [(token, len(audio) / 16000) for token in result["tokens"][len(expected) :]]
    assert expected
    of_student = description.split("student: ")[1].split("; ")
    assert of_student == [
        html.escape(f"{token['token']}: {token['start_s']:.2f} s, out at {seconds:.2f} s")
        for token, seconds in expected
    ]
    teacher = Recognizer.from_pretrained(exp / "teacher", None).recognize(audio)
    of_teacher = description.split("teacher: ")[1].split(". student: ")[0].split("; ")
    assert of_teacher == [html.escape(f"{token['token']}: {token['start_s']:.2f} s") for token in teacher["tokens"]]
    # Where tokens come out, in px: the label stands there
    image = re.search(r'<image href="data:image/png;base64,([^"]+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', page)
    left, width = float(image.group(2)), float(image.group(3))
    places = re.findall(r'<text class="mark" x="([\d.]+)"', drawing.group(0))[-len(expected) :]
    for place, (_, seconds) in zip(places, expected, strict=True):
        assert float(place) == pytest.approx(left + width * seconds * 16000 / len(audio), abs=0.2)
    spectrogram = Image.open(io.BytesIO(base64.b64decode(image.group(1))))
    assert spectrogram.size == ((len(audio) - 400) // 160 + 1, 80) and spectrogram.mode == "LA"


def test_long_utterances_are_not_drawn_and_the_worst_comes_first():
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 16.0}
    assert chosen(seconds, "a", 2) == ["a", "b"] and chosen(seconds, "d", 9) == ["b", "a", "c"]
    assert chosen(seconds, None, 1) == ["b"] and chosen({"d": 16.0}, "d", 3) == []


def test_labels_do_not_overlap():
    marks = [Mark(x, 0, 2, "", label="word") for x in (10, 12, 14, 90)]
    drawing = Alignment("u", 1.0, "", teacher=marks, student=[Mark(x, 0, 2, "", label="word") for x in (10, 12)])
    drawing.shown = [40.0, 41.0]
    place_rows(drawing, Scale(0, 1, 0, 100))
    assert len({mark.label_y for mark in marks[:3]}) == 3 and all(mark.label_y < drawing.top for mark in marks)
    assert len({mark.label_y for mark in drawing.student}) == 2
    assert all(drawing.bottom < mark.label_y < drawing.height for mark in drawing.student)


def test_audio_is_what_was_recognised(exp, page):
    audio = Elements(page).all("audio")
    assert len(audio) == 3
    name = audio[0]["aria-label"].removeprefix("Audio of ")
    content = base64.b64decode(audio[0]["src"].removeprefix("data:audio/flac;base64,"))
    played, rate = soundfile.read(io.BytesIO(content))
    original, _ = soundfile.read(exp.parent / f"dump/raw/test/{name}.wav")
    assert rate == 16000 and abs(played - original).max() < 1e-4


def test_text_of_data_files_is_never_markup(exp, tmp_path):
    root = tmp_path / "evil"
    shutil.copytree(exp.parent, root)
    evil = "<script>alert(1)</script>"
    results = json.loads((root / "exp/results.json").read_text())
    results["recipe"] = results["environment"]["python"] = evil
    for row in results["rows"]:
        row["test_set"] = row["test_set"].replace("test_unseen", "<b>unseen</b>")
    (root / "exp/results.json").write_text(json.dumps(results))
    for path in (root / "exp/student_stream/decode_480ms/test/score_wer").glob("*.trn"):
        path.write_text(path.read_text().replace("nine", "<img/src=x>").replace("eight", "'onload='x"))
    page = page_of(root / "exp", "--num_utts", "0")
    elements = Elements(page)
    assert not elements.all("script") and not elements.all("img") and "&lt;img/src=x&gt;" in page
    assert not [attributes for _, attributes in elements.found if "onload" in attributes]


def test_no_path_of_this_machine(exp, page):
    assert "/home/bob" not in page and str(exp) not in page


@pytest.mark.parametrize(
    "missing", ["bench.json", "export", "student_full_no_kd", "teacher", "student_stream", "checkpoints"]
)
def test_goes_without_what_is_missing(exp, tmp_path, missing, capsys):
    root = tmp_path / "less"
    shutil.copytree(exp.parent, root)
    results = json.loads((root / "exp/results.json").read_text())
    results["rows"] = [row for row in results["rows"] if row["system"] != missing]
    if missing == "teacher":
        for row in results["rows"]:
            row.pop("relative_loss", None)
    (root / "exp/results.json").write_text(json.dumps(results))
    for path in root.glob("exp/*/checkpoint.pth") if missing == "checkpoints" else [root / "exp" / missing]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    page = page_of(root / "exp", "--num_utts", "1")
    sections = {attributes["id"] for attributes in Elements(page).all("section")}
    gone = {"teacher": {"size", "layers"}, "student_stream": {"latency"}, "export": {"export"}}.get(missing, set())
    assert {"results", "about"} <= sections and not gone & sections


def test_without_audio_errors_are_shown_but_not_heard(exp, tmp_path, capsys):
    report.main(["--expdir", str(exp), "--data", str(tmp_path), "--output", str(tmp_path / "x.html")])
    page = (tmp_path / "x.html").read_text()
    assert '<section id="errors">' in page and "<audio" not in page and '<section id="layers">' not in page
    assert "similarity of layers is left out" in capsys.readouterr().err


def test_tokens_where_no_words_were_scored(exp, tmp_path):
    """As after greedy decoding of phones."""
    root = tmp_path / "phones"
    shutil.copytree(exp.parent, root)
    results = json.loads((root / "exp/results.json").read_text())
    for row in results["rows"]:
        counts = {name: row[name] for name in ("sub", "del", "ins", "utterances")}
        row["scores"] = {"ter": {"err": row["wer"], "units": row["words"], **counts}}
        row |= {"ter_low": row.pop("wer_low"), "ter_high": row.pop("wer_high")}
        row |= dict.fromkeys(("wer", "sub", "del", "ins", "words"))
    (root / "exp/results.json").write_text(json.dumps(results))
    for folder in root.glob("exp/*/decode_*/test/score_wer"):
        folder.rename(folder.with_name("score_ter"))
    page = page_of(root / "exp", "--num_utts", "0")
    assert "of the tokens wrong" in page and "TER against latency" in page and '<section id="errors">' in page
    assert "WER" not in page and ">None<" not in page


def fill_rows(root: Path, change) -> str:
    """The page of a copy of the experiment in ``root`` after ``change`` of each row of its results."""
    results = json.loads((root / "exp/results.json").read_text())
    results["rows"] = [row for row in map(change, results["rows"]) if row is not None]
    (root / "exp/results.json").write_text(json.dumps(results))
    return page_of(root / "exp", "--num_utts", "0")


@pytest.mark.parametrize("system", ["teacher", "student_stream"])
def test_nothing_is_concluded_from_a_system_that_recognises_nothing(exp, tmp_path, system):
    shutil.copytree(exp.parent, tmp_path / "poor")
    page = fill_rows(tmp_path / "poor", lambda row: row | ({"wer": 100.52} if row["system"] == system else {}))
    heading = re.search(r"<h1>(.*?)</h1>", page).group(1)
    name = "teacher" if system == "teacher" else "streaming student"
    assert heading.startswith(f"The {name} recognises too little for any conclusion")
    assert "smaller and" not in heading and "significant" not in page
    (line,) = re.findall(r'<tr class="main">.*?</tr>', page, re.DOTALL)
    assert "%" not in re.sub(r"<[^>]*>", "", line).replace("100.52", "")  # no relative loss


def one_latency(row: dict) -> dict | None:
    """A row of an experiment with one test set, a teacher and one latency: plots of one and two points."""
    kept = row["system"] == "teacher" or (row["system"], row["latency_ms"]) == ("student_stream", 480)
    return row if row["test_set"] == "test" and kept else None


CONTRAST = """(() => {
    const parse = (c) => c.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = (e) => { while (e) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; e = e.parentElement; } return [255, 255, 255]; };
    const poor = [];
    for (const e of document.querySelectorAll('body *')) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.closest('.sr, audio')) continue;
        const style = getComputedStyle(e), on = light(behind(e));
        const ink = light(parse(e.closest('svg') ? style.fill : style.color));
        if (e.tagName === 'title' || e.classList.contains('value')) continue;  // not shown; on a coloured cell
        const ratio = (Math.max(ink, on) + .05) / (Math.min(ink, on) + .05);
        if (ratio < 4.5) poor.push(e.className + ' ' + e.textContent.slice(0, 20) + ' ' + ratio.toFixed(2));
    }
    return poor;
})()"""


# Height in pixels of the largest type in a plot, as it is shown
LARGEST_TYPE = """Math.max(...[...document.querySelectorAll('svg')].map((svg) => {
    const text = svg.querySelector('text'), shown = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return text ? shown * parseFloat(getComputedStyle(text).fontSize) : 0; }))"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
def test_plots_with_a_point_or_two_have_no_giant_type(exp, tmp_path):
    async def scenario():
        shutil.copytree(exp.parent, tmp_path / "few")
        fill_rows(tmp_path / "few", one_latency)
        url = (tmp_path / "few/exp/report/index.html").resolve().as_uri()
        async with browse(url, tmp_path / "profile", ready="document.querySelectorAll('svg').length > 0") as tab:
            await tab.screenshot(tmp_path / "page.png", 1600, 900, False)
            assert await tab.evaluate(LARGEST_TYPE) < 20

    asyncio.run(asyncio.wait_for(scenario(), 90))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
def test_in_a_browser_on_a_desk_on_a_phone_in_the_dark_and_on_paper(exp, page, tmp_path):
    async def scenario():
        url = (exp / "report/index.html").resolve().as_uri()
        async with browse(url, tmp_path / "profile", ready="document.querySelectorAll('audio').length > 0") as tab:
            assert await tab.evaluate("document.querySelectorAll('section').length") == 9
            for width, dark in ((1200, False), (390, False), (390, True)):
                await tab.screenshot(tmp_path / "page.png", width, 800, dark)
                # Nothing but tables sticks out, and those scroll by themselves.
                assert await tab.evaluate("document.documentElement.scrollWidth") <= width
                assert await tab.evaluate(CONTRAST) == []
                assert await tab.evaluate("document.querySelector('.tile .value').getBoundingClientRect().bottom") < 400
            played = """new Promise((done, failed) => { const audio = document.querySelector('audio');
                audio.onloadedmetadata = () => done(audio.duration); audio.onerror = () => failed('no audio');
                audio.load(); audio.preload = 'auto'; })"""
            assert 0.5 < await tab.evaluate(played) < 3
            await tab.call("Emulation.clearDeviceMetricsOverride")
            paper = await tab.call("Page.printToPDF", printBackground=True)
            assert len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(paper["data"]))) <= 8

    asyncio.run(asyncio.wait_for(scenario(), 90))


def test_no_results_no_page(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--expdir", str(tmp_path)])
    assert end.value.code == 2 and "results.json: not found; run the stage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_history_is_the_trainers_own(exp):
    curves = read_history(exp / "student_stream")
    assert list(curves) == ["loss", "loss_hidden", "loss_logits", "loss_mmi"]
    assert curves["loss"]["valid"][2] == (3, pytest.approx(1.2))


def test_cka_is_one_up_to_rotation_and_scale_and_small_for_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, torch.randn(400, 12, generator=generator)) < 0.1
    assert linear_cka(x, torch.ones(400, 3)) == 0
    # By the definition with n x n kernels, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    y = x[:, :5].tanh() + 0.1 * torch.randn(400, 5, generator=generator)
    centre = torch.eye(400) - 1 / 400
    k, other = (centre @ (z @ z.T) @ centre for z in (x, y))
    expected = (k * other).sum() / ((k * k).sum() * (other * other).sum()).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-3)


def test_alignment_is_scored_as_sclite_scores():
    pairs = aligned("One two three", "one too three four")
    assert [(pair.ref, pair.hyp, pair.kind) for pair in pairs] == [
        ("One", "one", ""),
        ("two", "too", "S"),
        ("three", "three", ""),
        ("", "four", "I"),
    ]
    assert [pair.kind for pair in aligned("a b", "")] == ["D", "D"]


def test_a_measured_speed_is_compared_with_a_measured_speed():
    row = {"system": "student_stream", "latency_ms": 480, "rtf": 0.5}
    teacher = {"system": "teacher", "latency_ms": None, "rtf": 0.1}
    measured = {"runtime": "torch", "threads": 1}
    speeds = figures.Speeds({"speed": [{**row, **measured, "rtf": 0.02}, {**teacher, **measured, "rtf": 0.16}]})
    assert speeds.faster(row, teacher) == pytest.approx(8)
    assert figures.Speeds({}).faster(row, teacher) == pytest.approx(0.2)
    assert figures.Speeds({"speed": [{**row, **measured}]}).faster(row, teacher) is None
