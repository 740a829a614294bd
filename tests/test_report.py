"""The report: what it says, and that it works in a real browser, offline, on a phone, in the dark and on paper."""

from __future__ import annotations

import datetime
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_report import browser_path, write_pipeline
from repositories import dvc, write_repository

from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.experiment.report import make_report
from posttrain.experiment.report.gather import gather
from posttrain.experiment.report.graph import dependencies, stages_of, table_of_stages, what_ran
from posttrain.experiment.report.options import Request, parse_request
from posttrain.experiment.report.samples import marked, samples_of
from posttrain.experiment.report.tables import cut_answers, data_rows, differing_parameters, shown, summary

MADE = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments that differ in rloo's beta, `small` and `large`."""
    root = tmp_path_factory.mktemp("report")
    write_pipeline(root / "small", 0.02, EVIL)
    write_pipeline(root / "large", 0.2, EVIL)
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    text = make_report(Request(["small", "large"]), MADE, folder)
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


# -- what it is made from


def test_flags_and_experiments_in_any_order() -> None:
    request = parse_request(["main", "--output=a.html", "exp-1", "--title", "Mine", "main"])
    assert request.experiments == ["main", "exp-1"]
    assert (request.flags.output, request.flags.title) == ("a.html", "Mine")
    with pytest.raises(UserError, match=r"--outptu: no such flag.*output"):
        parse_request(["--outptu", "a.html"])
    with pytest.raises(UserError, match="--title takes a value"):
        parse_request(["--title", "--output", "a.html"])


def test_the_graph_follows_dvc_yaml_with_its_parameters_put_in(folder: Path) -> None:
    (one,) = gather(["small"], folder).experiments
    graph = dependencies(stages_of(one))
    assert set(graph.edges) == {
        ("prepare", "sft"),
        ("sft", "rloo"),
        ("sft", "evaluate@sft"),
        ("rloo", "evaluate@rloo"),  # which needs models/sft too: that goes without saying
        ("evaluate@rloo", "publish"),
    }


def test_what_ran_and_what_was_cached(folder: Path) -> None:
    gathered = gather(["small", "large"], folder)
    told = {name: words for name, (words,) in what_ran(gathered)}
    assert told["sft"] == told["evaluate@sft"] == "cached"
    assert told["rloo"] == told["evaluate@rloo"] == "ran"
    states = {row.name: row.state for row in table_of_stages(gathered)}
    assert states["sft"] == "recorded" and states["publish"] == "never run"


def test_differences_are_counted_from_the_first(folder: Path) -> None:
    gathered = gather(["small", "large"], folder)
    assert differing_parameters(gathered) == [("rloo.beta", ["0.02", "0.2"])]
    table = summary(gathered)
    assert table is not None and table.columns == ["sft", "rloo"]
    (_, first), (_, second) = table.rows
    assert [cell.text for cell in first] == ["50.0%", "64.7%"]
    assert [cell.difference for cell in second] == ["", "−18.0 pts"]
    assert first[0].interval == "18.0% to 81.0%"


def test_rows_dropped_and_tokens_cut_are_told(folder: Path) -> None:
    gathered = gather(["small"], folder)
    sft, rloo = data_rows(gathered)
    assert (sft.read, sft.kept, sft.dropped, sft.truncated, sft.tokens_truncated) == (60, 58, {"no_target": 2}, 3, 41)
    assert (rloo.read, rloo.kept, sum(rloo.dropped.values()), rloo.tokens_truncated) == (40, 40, 0, 0)
    assert cut_answers(gathered) == [("sft", "all", 1, 1, 6), ("rloo", "all", 0, 0, 6)]


def test_answers_that_experiments_share_are_one_column(folder: Path) -> None:
    samples = samples_of(gather(["small", "large"], folder))
    assert [(column.model, column.experiments) for column in samples.columns] == [
        ("sft", ["small", "large"]),
        ("rloo", ["small"]),
        ("rloo", ["large"]),
    ]
    assert samples.counts == {"differing": 4, "right": 1, "wrong": 1}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1 + 1\n#### 2", ("1 + 1\n#### ", "2", "")),
        ("#### 3\n#### 1,234 \nso", ("#### 3\n#### ", "1,234", "\nso")),
        ("no mark", ("no mark", "", "")),
        ("#### many", ("#### many", "", "")),
    ],
)
def test_the_number_that_is_graded_is_marked(text: str, parts: tuple[str, str, str]) -> None:
    assert marked(text) == parts


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("exact_match", 0.6078, "60.8%"),
        ("num_tokens", 1415165.0, "1,415,165"),
        ("loss", -1.0244548e-09, "-1.024e-09"),
        ("kl_to_sft", 1.2453, "1.245"),
        ("tokens_per_second", 13944.41, "13,944"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(name: str, value: float, text: str) -> None:
    assert shown(name, value) == text


# -- the page


def test_the_same_inputs_give_the_same_bytes_in_one_small_file(folder: Path, report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    words = [sys.executable, "-m", "posttrain.cli", "report", "small", "large", "--output", "again.html"]
    fixed = {"SOURCE_DATE_EPOCH": f"{MADE.timestamp():.0f}", "PYTHONHASHSEED": "7"}  # another order of sets than here
    subprocess.run(words, cwd=folder, env=os.environ | fixed, check=True)
    assert (folder / "again.html").read_text(encoding="utf-8") == text
    assert len(text.encode()) < 3e6
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_nothing_of_data_or_models_becomes_markup(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert EVIL not in text and "<img" not in text
    assert text.count("<script") == text.count("</script>") == 3 + text.count('type="application/json"') - 1


def test_what_is_missing_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "new/metrics").mkdir(parents=True)
    (tmp_path / "new/params.yaml").write_text("sft: {seed: 0}\n")
    text = make_report(Request(["new"]), MADE, tmp_path)
    for told in ("No model was evaluated", "no dvc.yaml", "No stage has written its curve", "There are no answers"):
        assert told in text
    write_pipeline(tmp_path / "old")
    (tmp_path / "old/results/evaluate_rloo.jsonl").unlink()
    (tmp_path / "old/plots/sft.csv").unlink()
    text = make_report(Request(["old"]), MADE, tmp_path)
    assert "results/evaluate_rloo.jsonl does not exist there" in text or "evaluate_rloo.jsonl is not in" in text
    assert "models/rloo.provenance.json does not exist" in text
    with pytest.raises(UserError, match=r"params\.yaml, dvc\.lock or metrics"):
        gather([], tmp_path)


def test_the_command_writes_the_file_and_names_experiments_it_does_not_know(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert main(["report", "small", "--output", "here/mine.html", "--title", "A & B"]) == 0
    text = Path("here/mine.html").read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text and "1970-01-01 00:00 UTC" in text
    assert main(["report", "nothing-of-that-name"]) == 2
    assert "'nothing-of-that-name' is no experiment" in capsys.readouterr().err


def test_of_a_repository_it_shows_status_commit_and_experiments(tmp_path: Path) -> None:
    """The workspace of a real repository of DVC, one stage of which is not as in dvc.lock."""
    root = tmp_path
    (root / "dvc.yaml").write_text("stages:\n  sft: {cmd: cp in.txt out.txt, deps: [in.txt], outs: [out.txt]}\n")
    (root / "in.txt").write_text("1")
    (root / "params.yaml").write_text("sft: {seed: 0}\n")
    write_repository(root)
    dvc(root, "repro", "-q")
    for words in ("add -A", "commit -qm start"):
        subprocess.run(["git", *words.split()], cwd=root, check=True)
    (root / "in.txt").write_text("2")
    gathered = gather([], root)
    (row,) = table_of_stages(gathered)
    assert (row.state, row.reasons) == ("changed", ["changed deps: in.txt modified"])
    assert gathered.dirty and gathered.commit is not None and len(gathered.commit) == 40
    assert "with uncommitted changes" in make_report(Request(), MADE, root)


# -- in a browser


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Any]:
    """The page, drawn, without a network; when all is done nothing may have been complained about or fetched. Opened
    once, since that takes most of the time: a test sets what it looks at."""
    path = browser_path()
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1100, "height": 800}, color_scheme="light", offline=True)
        opened, said, asked = context.new_page(), [], []
        opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(report.as_uri())
        opened.wait_for_selector("html[data-drawn=yes]", state="attached")
        yield opened
        title = opened.title()
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert title == "Post-training report"  # and not what a completion would have it


def traces(page: Any, name: str) -> list[dict[str, Any]]:
    """The traces of a figure that are to be seen."""
    script = "name => document.querySelector(`[data-plot=${name}]`).data.filter(t => t.visible)"
    shown_of = page.evaluate(f"name => ({script})(name).map(t => ({{name: t.name, y: t.y}}))", name)
    return list(shown_of)


def test_figures_are_drawn_and_follow_their_selector(page: Any) -> None:
    assert page.locator(".plot .main-svg").count() >= 2 * page.locator(".plot").count() > 0
    shown_first = [trace["y"] for trace in traces(page, "curve-sft")]
    assert shown_first == [[4.25, 0.5], [0.75]]  # the loss, and its evaluation
    page.locator("select[data-figure=curve-sft]").select_option("entropy")
    page.wait_for_function(
        "() => document.querySelector('[data-plot=curve-sft]').layout.yaxis.title.text === 'entropy'"
    )
    assert [trace["y"] for trace in traces(page, "curve-sft")] == [[1.5, 1.5]]
    names = {trace["name"] for trace in traces(page, "curve-rloo")}
    assert names == {"small", "large"}
    assert {trace["name"] for trace in traces(page, "curve-sft")} >= {"small (+1 the same)"}


def test_answers_are_filtered_and_searched(page: Any) -> None:
    problems = page.locator(".problem:visible")
    assert problems.count() == 6
    page.get_by_label("all wrong").check()
    assert problems.count() == 1 and page.locator("#count").inner_text() == "1 problem"
    assert "… cut off at 80 tokens" in problems.inner_text()
    page.get_by_label("all", exact=True).check()
    page.get_by_label("Search").fill("What is 3 + 1")
    assert problems.count() == 1
    verdicts = problems.locator(".verdict").all_inner_texts()
    assert verdicts == ["✗ wrong", "✓ right", "✓ right"]
    assert problems.locator("mark").all_inner_texts() == ["99", "4", "4"]
    page.locator("[name=column]").first.uncheck()
    assert problems.locator(".answer:visible").count() == 2
    page.locator("[name=column]").first.check()
    page.get_by_label("Search").fill("")
    assert problems.count() == 6


def test_light_and_dark(page: Any) -> None:
    figure = "document.querySelector('[data-plot]').layout.font.color"

    def colours() -> list[str]:
        return list(page.evaluate(f"() => [getComputedStyle(document.body).backgroundColor, {figure}]"))

    light = colours()
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_function(f"old => {figure} !== old", arg=light[1])
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(20, 23, 27)"
    page.emulate_media(color_scheme="dark")
    assert colours() == dark
    page.emulate_media(color_scheme="light")
    assert colours() == dark  # the reader's choice counts


def test_details_open_from_the_keyboard(page: Any) -> None:
    details = page.locator("#provenance details").first
    assert details.locator("text=0f1e2d3").is_hidden()
    details.locator("summary").first.focus()
    page.keyboard.press("Enter")
    inner = details.locator("details:not([open]) > summary").first
    if inner.count():
        inner.click()
    assert details.locator("text=0f1e2d3").is_visible()


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_scrolls_up_and_down_only(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 780})
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_function("() => document.querySelector('[data-plot=curve-sft]')._fullLayout.width < innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = false; })")
    page.set_viewport_size({"width": 1100, "height": 800})


def test_paper_has_everything_open_in_light_colours(page: Any, tmp_path: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('[data-plot=curve-sft]')._fullLayout.width") == 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3


def test_headings_and_tables_are_told_to_those_who_do_not_see(page: Any) -> None:
    tags = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(heading => heading.tagName)")
    levels = [int(tag[1]) for tag in tags]
    assert levels[0] == 1 and all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.caption.textContent.trim())")
    assert page.evaluate("[...document.querySelectorAll('.plot')].every(plot => plot.ariaLabel)")
