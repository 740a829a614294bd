"""A line an optimizer step: what two runs are compared by, to find where they part (`posttrain repro-check`).

Each process writes a file of its own, for with sharded weights each sees its part. Writing changes nothing of the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.batch import PackedBatch

_AT_ONCE = 2**22  # numbers of a tensor that are summed up at a time: what that takes of memory stays small
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepRecord(TrainerCallback):
    """Writes a line a step: `step`, `batch` (digest of the tokens), `rows` (where they stand in the data), `sequences`
    (a digest of each one's tokens, its prompt included), `loss`, `gradient_norm`, and `tensors`, a digest of every
    trained one by its name. Step 0 is the model as training begins.

    Rows and sequences say what was seen, however a step is cut into micro-batches and processes.

    Args:
        file: of the first process; that of process 3 of steps.jsonl is steps.3.jsonl.
        process_index: of this process.
    """

    def __init__(self, file: Path, process_index: int):
        self.file = file_of(file, process_index)
        self._line: dict[str, Any] = {}

    def batches(self, batches: Sequence[PackedBatch]) -> None:
        """Takes the micro-batches of a step, on the CPU."""
        real = [batch for batch in batches if not batch.is_filler]
        self._line["batch"] = digest_of_tensor(torch.cat([batch.input_ids for batch in real])) if real else 0
        self._line["rows"] = [place for batch in real for place in batch.places]
        self._line["sequences"] = [digest_of_tensor(ids) for batch in real for ids in batch.sequences()]

    def gradient(self, losses: Sequence[torch.Tensor], norm: Any) -> None:
        """Takes the losses of a step's micro-batches, and the norm of its gradient (None where nobody knows it)."""
        self._line["loss"] = torch.stack(list(losses)).sum().item()
        self._line["gradient_norm"] = None if norm is None else float(norm)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins the file; one that a run goes on with keeps its lines up to there."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_steps(self.file) if line["step"] <= state.global_step]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        if not kept:
            self._write(state.global_step, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the line of a step."""
        self._write(state.global_step, kwargs["model"])

    def _write(self, step: int, model: torch.nn.Module) -> None:
        named = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
        digests = [_digest(tensor) for _, tensor in named]
        tensors = dict(zip((name for name, _ in named), torch.stack(digests).tolist(), strict=True)) if named else {}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **self._line, "tensors": tensors}) + "\n")
        self._line = {}


def file_of(file: Path, process_index: int) -> Path:
    """Where a process writes its lines.

    Args:
        file: of the first process.
        process_index: of the process.
    """
    return file if process_index == 0 else file.with_name(f"{file.stem}.{process_index}{file.suffix}")


def read_steps(file: Path) -> list[dict[str, Any]]:
    """The lines of a file; none where there is none. What a killed process left of its last line is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def digest_of_tensor(tensor: torch.Tensor) -> int:
    """A number of 64 bits that changes when a bit of a tensor does, or two of its numbers change places."""
    return int(_digest(tensor).item())


@torch.no_grad()
def _digest(tensor: torch.Tensor) -> torch.Tensor:
    """() int64, on the tensor's device: the sum of its numbers' bits, taken as integers, each times an odd number of
    its place; modulo 2^64. One pass over memory, where a cryptographic hash would first bring all to the CPU."""
    here = getattr(tensor, "ds_tensor", tensor)  # of a sharded one, what is here: ZeRO's third stage, FSDP
    local = here.to_local() if hasattr(here, "to_local") else here
    bits = local.detach().contiguous().flatten().view(_INTEGERS[local.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _AT_ONCE):
        piece = bits[start : start + _AT_ONCE].long()
        places = torch.arange(start, start + piece.numel(), device=bits.device)
        total += (piece * (2 * places * 0x9E3779B1 + 1)).sum()
    return total
