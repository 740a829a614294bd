"""Runs that a signal asks to end: the step is finished and saved, one line says how to go on, and the same command ends
as if nothing had happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_runs import Run, check_left, results, run_of, start, strange, write_material
from kills import Done, Kill
from stops import Server, stop


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    return folder


@pytest.fixture(scope="module")
def server(material: Path) -> Iterator[Server]:
    server = Server(material / "base")
    yield server
    server.close()


def lines(done: Done) -> list[str]:
    """What posttrain has said of stopping."""
    # Two threads write: now and then there is something before it in its line.
    return re.findall(r"posttrain: [^\n]*", done.output)


def kept(name: str, step: int, of: int = 9, folder: str = "out") -> str:
    """The last line of a run that was stopped."""
    return (
        f"posttrain: stopped by {name} after step {step} of {of}; kept in {folder}/checkpoint-{step}; "
        "the same command goes on from there"
    )


def check(server: Server, run: Run, folder: Path, moment: Kill, step: int, code: int, of: int = 9) -> None:
    """Stops a run, looks at what it leaves, goes on with it, and compares its end with that of an undisturbed one."""
    stopped = start(server, run, folder / "stopped", moment)
    name = moment.kind.split()[1].removesuffix("+")
    assert stopped.code == code and "Traceback" not in stopped.output, stopped.output
    assert lines(stopped) == [
        f"posttrain: {name}: stopping after this step; Ctrl-C again stops at once",
        kept(name, step, of),
    ]
    assert not stopped.left_behind
    assert (folder / f"stopped/out/checkpoint-{step}").is_dir() and not list((folder / "stopped").glob("out/*model*"))
    check_left(folder / "stopped")
    again, whole = start(server, run, folder / "stopped"), start(server, run, folder / "whole")
    assert again.code == whole.code == 0, again.output
    assert f"Going on from out/checkpoint-{step}." in again.output
    expected, found = results(folder / "whole"), results(folder / "stopped")
    different = [key for key in expected.keys() | found if expected.get(key) != found.get(key)]
    assert not different, different
    assert not strange(folder / "stopped")


@pytest.mark.parametrize(
    ("variant", "moment", "step", "code"),
    [
        # Between two checkpoints, and with processes that load rows, which get the signal, too.
        (("sft", "adapter, best at the end"), stop("on_step_begin", 2, "SIGTERM+"), 3, 143),
        # In the middle of an evaluation, which is finished; and what transformers would not save for "best".
        (("sft", "adapter, best at the end"), stop("on_prediction_step", 4, "SIGINT"), 5, 130),
        # Another process than the first: all stop at the same step, the one after that under way.
        (("grpo", "two processes"), stop("on_step_begin", 4, "SIGUSR1", rank=1), 6, 138),
        # The reward's process gets the signal, too.
        (("rloo", "streaming, workers"), stop("on_step_begin", 3, "SIGTERM+"), 4, 143),
        # In a step that ends an epoch, and with it come a log line, an evaluation and a checkpoint.
        (("reward", "epochs, logged and saved at their ends"), stop("on_step_begin", 2, "SIGTERM"), 3, 143),
        # In one that does not.
        (("reward", "epochs, logged and saved at their ends"), stop("on_step_begin", 3, "SIGTERM"), 4, 143),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    variant: tuple[str, str], moment: Kill, step: int, code: int, server: Server, material: Path, tmp_path: Path
) -> None:
    run = run_of(*variant, material)
    if variant[1] == "adapter, best at the end":
        workers = ["--dataloader_num_workers", "1"] if step == 3 else ["--save_strategy", "best"]
        run = Run([*run.words, *workers], run.processes)
    check(server, run, tmp_path, moment, step, code)


def test_before_the_first_step_a_signal_ends_the_run_at_once(server: Server, material: Path, tmp_path: Path) -> None:
    run = run_of("sft", "streaming, noise", material)
    for number, name in ((143, "SIGTERM"), (130, "SIGINT"), (138, "SIGUSR1"), (129, "SIGHUP")):
        done = start(server, run, tmp_path, stop("tokenizer", 0, name))
        assert (done.code, lines(done)) == (number, [f"posttrain: stopped by {name} before the first step"])
        assert "Traceback" not in done.output


def test_ctrl_c_after_another_signal_ends_the_run_where_it_is(server: Server, material: Path, tmp_path: Path) -> None:
    run = run_of("grpo", "moving reference, adaptive", material)
    done = start(server, run, tmp_path, stop("on_step_begin", 3, "SIGTERM", "SIGINT"))
    assert done.code == 130 and not done.left_behind and "Traceback" not in done.output
    assert lines(done)[1:] == ["posttrain: stopped at once; what was saved before is kept"]
    assert sorted(path.name for path in tmp_path.glob("out/checkpoint-*")) == ["checkpoint-2"]


@pytest.mark.parametrize("event", ["on_step_begin", "on_train_end"])
def test_a_run_that_is_done_anyway_is_brought_to_its_end(
    event: str, server: Server, material: Path, tmp_path: Path
) -> None:
    run = run_of("sft", "streaming, noise", material)
    done = start(server, run, tmp_path, stop(event, 8 if event == "on_step_begin" else 9, "SIGTERM", "SIGTERM"))
    assert done.code == 0, done.output
    assert len(lines(done)) == 1 and "Ctrl-C again stops at once" in lines(done)[0]
    assert results(tmp_path)["history"][-1]["step"] == 9


def test_what_cannot_be_gone_on_from_is_told_as_such(server: Server, material: Path, tmp_path: Path) -> None:
    run = run_of("sft", "streaming, noise", material)
    words = [*run.words, "--save_only_model", "--save_strategy", "no", "--enable_jit_checkpoint"]
    done = start(server, Run(words, 1), tmp_path, stop("on_step_begin", 4, "SIGTERM"))
    assert done.code == 143
    assert lines(done)[-1] == (
        "posttrain: stopped by SIGTERM after step 5 of 9; kept in out/checkpoint-5; "
        "training cannot go on from it, since --save_only_model keeps the weights alone"
    )
    assert "Without effect here: enable_jit_checkpoint" in done.output
    assert (tmp_path / "out/checkpoint-5/model.safetensors").is_file()
