"""What a case of the corpora of bad data is, and how one is run: the way of the command line, up to the weights."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers_data import PLAIN_TEMPLATE, make_tokenizer

from posttrain.config import DPOConfig, GRPOConfig, RewardConfig, SFTConfig
from posttrain.data.prepare import PreparedData, check, prepare
from posttrain.errors import report_mistakes

CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "preference": DPOConfig,
    "reward": RewardConfig,
    "prompts": GRPOConfig,
}
METHODS = {"sft": "sft", "preference": "dpo", "reward": "reward", "prompts": "grpo"}
LONGEST_MESSAGE = 20_000  # characters
SECONDS = 30  # by the clock, on a machine that does other things too
Write = Callable[[Path], "Path | str"]


@dataclass(frozen=True)
class Case:
    """Something that is given as data.

    Args:
        kind: of training: "sft", "preference", "reward" or "prompts".
        write: makes it in a folder, and returns what --dataset_name says.
        said: parts of the message; none where the data is in fact fine.
        rows: for fine data, the texts that are trained on.
        noted: for fine data, parts of what is logged: counted skips.
        flags: of the run.
        template: of the tokenizer.
        limit: seconds that a template has.
    """

    kind: str
    write: Write
    said: tuple[str, ...] = ()
    rows: list[str] | None = None
    noted: tuple[str, ...] = ()
    flags: dict[str, Any] = field(default_factory=dict)
    template: Any = PLAIN_TEMPLATE
    limit: float = 10.0


def bad(kind: str, write: Write, *said: str, **more: Any) -> Case:
    """Data that ends with a message."""
    return Case(kind, write, said, **more)


def fine(kind: str, write: Write, rows: list[str], *noted: str, **more: Any) -> Case:
    """Data that trains."""
    return Case(kind, write, rows=rows, noted=noted, **more)


def raw(content: bytes | str, name: str = "rows.jsonl") -> Write:
    """A file of these bytes."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return write


def lines(*rows: Any) -> Write:
    """A file with a JSON value a line; a text is a line as it is."""
    return raw("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Whatever hangs ends as a failure."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def config_of(case: Case, data: Path | str, folder: Path) -> Any:
    """The flags of a run."""
    words = {"model_name_or_path": "m", "cache_dir": str(folder / "cache"), "output_dir": str(folder / "out")}
    flags = {"dataset_name": str(data), **words, **case.flags}
    return CONFIGS[case.kind](explicit=frozenset(flags), **flags)


def outcome(case: Case, folder: Path) -> tuple[int, PreparedData | None]:
    """Exit code, and the rows where it is 0; what is said goes to stderr and to the log of posttrain."""
    found: list[PreparedData | None] = []

    def run() -> int:
        config = config_of(case, case.write(folder), folder)
        check(config, case.kind)
        found.append(prepare(config, make_tokenizer(case.template), case.kind, config.dataset_train_split))
        return 0

    logging.getLogger("posttrain").setLevel("INFO")
    with bounded():
        return report_mistakes(run), found[0] if found else None


def texts_of(kind: str, data: PreparedData) -> list[str]:
    """What is trained on, as text: sequences; for pairs both sides, with the prompt in front of each."""
    decode = make_tokenizer().decode
    names = {"sft": [["input_ids"]], "prompts": [["prompt_ids"]]}.get(
        kind, [["prompt_ids", "chosen_ids"], ["prompt_ids", "rejected_ids"]]
    )
    return [decode([token for name in parts for token in row[name]]) for row in data.dataset for parts in names]
