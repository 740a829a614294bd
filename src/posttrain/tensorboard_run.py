"""What a run leaves for TensorBoard beside its curves: texts to read, and the flags for the tab of hyper-parameters.

A run that goes on from a checkpoint writes on in the folder of its beginning: one run in TensorBoard, whatever was
logged after the checkpoint once, texts and flags once. Nothing here draws at random or touches the model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from posttrain.config import CommonConfig
from posttrain.data.stream import Stream
from posttrain.methods import Method
from posttrain.runs import WITHOUT_A_SAY

ROWS_SHOWN = 3
COMPLETIONS_SHOWN = 8
OPEN, CLOSE = "[[", "]]"  # around what is trained on
_LONGEST = 2000  # characters of a text
_ALWAYS = ("learning_rate", "seed")  # of the flags, beside those that were set
_NAMES = ("model_name_or_path", "dataset_name")


class TensorBoardRun(TensorBoardCallback):
    """transformers' callback, with texts and flags.

    Args:
        method: what is trained.
        rows: the tokenised data set.
        tokenizer: of the model.
    """

    logging_dir: str | None
    tb_writer: Any

    def __init__(self, method: Method, rows: Any, tokenizer: Any):
        super().__init__()
        self.method, self.rows, self.tokenizer = method, rows, tokenizer
        self._first_step = 0
        self._last_shown = -1

    def _init_summary_writer(self, args: Any) -> None:
        purge = self._first_step + 1 if self._first_step else None
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=purge)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finds the folder, and writes what is known at the beginning."""
        if not state.is_world_process_zero:
            return
        self._first_step = state.global_step
        begun = sorted(path for path in (Path(args.output_dir) / "runs").glob("*") if path.is_dir())
        if state.global_step and begun and self.logging_dir is None:
            self.logging_dir = str(begun[0])
            self._init_summary_writer(args)
            return
        super().on_train_begin(args, state, control, **kwargs)
        if self._first_step:  # the beginning was not reported to TensorBoard, and is over
            return
        for number, text in enumerate(texts_of_rows(self.rows, self.tokenizer, ROWS_SHOWN)):
            self.tb_writer.add_text(f"rows/{number}", text, 0)
        _, start, _ = _hparams(hyper_parameters(self.method.config))
        # Without torch's list of all names, of which TensorBoard would read that of one run for all.
        self.tb_writer.file_writer.add_summary(start)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The numbers, and some of the completions that were sampled last."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        table = getattr(self.method, "last_completions", None)
        if (
            table is None
            or self.tb_writer is None
            or self._last_shown == state.global_step
            or "loss" not in (logs or {})
        ):
            return
        self._last_shown = state.global_step
        rows = table.slice(0, COMPLETIONS_SHOWN).to_pylist()
        self.tb_writer.add_text("completions", "\n\n---\n\n".join(map(text_of_completion, rows)), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says that the run has ended; its last numbers are those that the tab shows."""
        if self.tb_writer is not None:
            _, _, end = _hparams({})
            self.tb_writer.file_writer.add_summary(end)
        super().on_train_end(args, state, control, **kwargs)


def _hparams(flags: Mapping[str, Any]) -> Any:
    from torch.utils.tensorboard.summary import hparams  # 0.2 s that a run with another tracker, or none, need not wait

    return hparams(flags, {})


def use_tensorboard_run(trainer: Trainer, method: Method, rows: Any, tokenizer: Any) -> None:
    """Puts it in the place of transformers' callback, where the run reports to TensorBoard.

    Args:
        trainer: of the run.
        method, rows, tokenizer: see TensorBoardRun.
    """
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(TensorBoardRun(method, rows, tokenizer))


def hyper_parameters(config: CommonConfig) -> dict[str, float | str | bool]:
    """The flags that were set and have a say in what is trained, and a few others; lists and mappings as text."""
    flags = config.to_mapping()
    chosen = {name for name in flags if name in config.explicit and name not in WITHOUT_A_SAY} | {*_ALWAYS, *_NAMES}
    found: dict[str, float | str | bool] = {"method": type(config).__name__.removesuffix("Config").lower()}
    for name in sorted(chosen):
        value = flags.get(name)
        if value is not None:
            found[name] = value if isinstance(value, int | float | str) else json.dumps(value, default=str)
    return found


def texts_of_rows(rows: Any, tokenizer: Any, number: int) -> list[str]:
    """Some rows as the model sees them, as Markdown; what is trained on in [[…]].

    Args:
        rows: tokenised, as the methods' data are; prompts are left out, which stand with their completions.
        tokenizer: of the model.
        number: how many, from the first.
    """
    first = list(rows.head[:number]) if isinstance(rows, Stream) else [rows[i] for i in range(min(number, len(rows)))]
    return [text for row in first if (text := _text_of_row(row, tokenizer))]


def text_of_completion(row: Mapping[str, Any]) -> str:
    """A row of rollout/completions.py as Markdown."""
    told = [f"{name} {_number(value)}" for name, value in row.items() if name not in ("prompt", "completion", "step")]
    return "\n\n".join([", ".join(told), "prompt", _block(row["prompt"]), "completion", _block(row["completion"])])


def _text_of_row(row: Mapping[str, Any], tokenizer: Any) -> str:
    if "input_ids" in row:
        return _block(_marked(row["input_ids"], [0, *list(row["loss_mask"])[1:]], tokenizer))
    if "chosen_ids" not in row:
        return ""
    parts = ["prompt", _block(_marked(row["prompt_ids"], [0] * len(row["prompt_ids"]), tokenizer))]
    for side in ("chosen", "rejected"):
        ids = row[f"{side}_ids"]
        parts += [side, _block(_marked(ids, row.get(f"{side}_mask", [1] * len(ids)), tokenizer))]
    return "\n\n".join(parts)


def _marked(ids: Sequence[int], mask: Sequence[int], tokenizer: Any) -> str:
    text = ""
    for trained, run in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1])):
        part = tokenizer.decode([int(token) for token, _ in run], skip_special_tokens=False)
        text += f"{OPEN}{part}{CLOSE}" if trained else part
    return text


def _block(text: str) -> str:
    """A text as it is, in Markdown: indented, so that nothing in it is read as a mark."""
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    return "\n".join(f"    {line}" for line in cut.split("\n"))


def _number(value: Any) -> str:
    return "none" if value is None else format(value, "g") if isinstance(value, float) else str(value)
