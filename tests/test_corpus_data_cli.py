"""Some of the corpora by the commands themselves: exit code 2 and one message, before any weight is loaded."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest
from corpus import data_rows, data_tables, data_templates, data_text
from helpers_corpus import LONGEST_MESSAGE, METHODS, Case, bounded
from tiny import write_base

from posttrain.cli import main
from posttrain.data import files, template

CASES = {
    title: corpus.CASES[title]
    for corpus, titles in (
        (data_text, ["a bomb of zeros", "a key twice", "lists 100,000 deep", "UTF-16", "gzip cut off"]),
        (data_rows, ["10 MB in a wrong column", "a margin of 400 digits", "unpaired rows",
                     "half a character in a prompt", "a password in an address, for data"]),
        (data_tables, ["a pipe in a split's folder", "a device without end", "saved, Arrow cut off", "a name with NUL",
                       "a name of 5,000 letters", "the home of nobody", "a link to itself", "Parquet cut off"]),
        (data_templates, ["loops in loops", "1 TB", "the classes of Python", "one text for all", "an unknown filter"]),
    )
    for title in titles
}  # fmt: skip
# The command's own checks of paths come first, and say it in their words.
SAID = {
    "a device without end": ["rows.jsonl"],
    "a name with NUL": ["--dataset_name", "NUL"],
    "a password in an address, for data": ["dataset_name", "password"],
    "a name of 5,000 letters": ["dataset_name"],
    "a link to itself": ["rows.jsonl"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import posttrain.methods
    import posttrain.methods.reward

    def refuse(*args: object) -> None:
        raise AssertionError("weights are being loaded")

    monkeypatch.setattr(posttrain.methods, "load_causal_model", refuse)
    monkeypatch.setattr(posttrain.methods.reward, "load_reward_model", refuse)
    monkeypatch.setattr(files, "MAX_LINE", 2**25)
    monkeypatch.setattr(template, "MEMORY", 2**28)


def words(case: Case, base: Path, folder: Path) -> list[str]:
    """The command line of a case; a template that is not the usual one stands in a file."""
    given = {
        "model_name_or_path": base,
        "dataset_name": case.write(folder),
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
        **case.flags,
    }
    if case.template != Case.template:
        (folder / "template.jinja").write_text(case.template, encoding="utf-8")
        given["chat_template_path"] = folder / "template.jinja"
    if case.kind == "prompts":
        given["reward_funcs"] = "think_format_reward"
    return [METHODS[case.kind], *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


@pytest.mark.parametrize("title", CASES)
def test_the_command_says_it(
    title: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[title]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(template, "SECONDS", case.limit)
    with bounded():
        assert main(words(case, base, tmp_path)) == 2
    told = capsys.readouterr().err
    message = told[told.index("posttrain: error: ") :]
    assert len(message) < LONGEST_MESSAGE and "Traceback" not in told and "hunter2" not in told
    assert all(part in message for part in SAID.get(title, case.said)), message
    assert not (tmp_path / "out" / "trainer_state.json").exists()


@pytest.mark.parametrize("title", ["10 MB in a wrong column", "a pipe in a split's folder", "a name of 5,000 letters"])
def test_inspect_says_it(title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bounded():
        assert main(["inspect", "--dataset_name", str(CASES[title].write(tmp_path))]) in (1, 2)
    told = capsys.readouterr()
    assert len(told.out + told.err) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"\xff\xfe{\0{\0", "cannot be read"),
        (b"{{ messages | map(attribute='content') | joint }}", "chat template line 1 of {path}: No filter"),
        (b"{{ raise_exception('not me') }}", "not me; change the row or the template of {path}"),
        (b"the same for all", "mend the template of {path}, or give another one"),
    ],
)
def test_a_template_file(
    content: bytes | None, said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = data_templates.CASES["a refusal"]
    given = words(case, base, tmp_path)
    path = tmp_path / "template.jinja"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert main(given) == 2
    assert said.format(path=path) in capsys.readouterr().err


def test_in_a_process_of_its_own(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits as they are, of a template that doubles its text: the process ends as after any other mistake."""
    given = words(data_templates.CASES["text that doubles"], base, tmp_path)
    monkeypatch.undo()
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of forking beside threads
        process = os.fork()
        if not process:
            with open(tmp_path / "told", "wb") as told:
                os.dup2(told.fileno(), 2)
                sys.stderr = sys.__stderr__
                os._exit(main(given))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 2
    told_text = (tmp_path / "told").read_text()
    assert "more than 2,048 MiB" in told_text and "Traceback" not in told_text
