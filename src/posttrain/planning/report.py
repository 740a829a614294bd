"""A plan: what is known of a run before anything of it is loaded, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from posttrain.inspection.findings import Finding
from posttrain.planning.batches import Load, Steps
from posttrain.planning.memory import Memory
from posttrain.planning.preparation import Preparation

MIB = 2**20


@dataclass(frozen=True)
class RowsPlan:
    """Rows to train on.

    Args:
        source: where they come from.
        read: rows of the data.
        kept: that are trained on; packed rows where documents are packed.
        dropped: left out.
        truncated, tokens_truncated: cut by a limit, and what they lose.
        tokens, targets: of all that are kept; with a shared prompt counted once.
        longest: tokens of the longest sequence.
        fitting: the smallest limit of tokens that cuts none of those that were looked at, and 99% of them.
        packing: tokens of packed rows, by what they could hold; None where nothing is packed.
        packable: the same as if they were packed; None where that is not possible.
        saved: share of tokens that need not be computed since prompts are shared and nothing is padded.
        looked_at: rows that were tokenised, where that is not all.
        evaluation: rows to evaluate on.
        preparation: of rows that are many and not prepared yet.
    """

    source: str
    read: int | None
    kept: int | None
    dropped: int
    truncated: int
    tokens_truncated: int
    tokens: int | None
    targets: int | None
    longest: int
    packing: float | None
    packable: float | None
    saved: float
    looked_at: int | None
    evaluation: int
    preparation: Preparation | None = None


@dataclass(frozen=True)
class TimePlan:
    """How long it takes, in seconds.

    Args:
        step: an optimizer step, by the formula; as a probe calibrates it, where there was one.
        start: from the command to the first step.
        training, evaluation, saving: of the whole run.
        is_measured: a probe measured the speed.
    """

    step: float
    start: float
    training: float
    evaluation: float
    saving: float
    is_measured: bool

    @property
    def total(self) -> float:
        return self.start + self.training + self.evaluation + self.saving


@dataclass(frozen=True)
class DiskPlan:
    """What is written, in bytes.

    Args:
        model: the finished model.
        checkpoint: one of them.
        num_saves: times that one is written.
        num_kept: at a time, that which is being written among them.
        cache: prepared rows and reference log-probs, where they are not there yet.
        completions: sampled texts, where they are written.
        dvc: by which the cache of DVC grows, where the output is one of a stage.
        free: where the run writes.
        preparing: rows, while they are prepared: what that takes above `cache`.
    """

    model: float
    checkpoint: float
    num_saves: int
    num_kept: int
    cache: float
    completions: float
    dvc: float
    free: float
    preparing: float = 0.0

    @property
    def total(self) -> float:
        """The most that the run takes at a time."""
        training = self.model + self.num_kept * self.checkpoint + self.completions + self.dvc
        return self.cache + max(self.preparing, training)


@dataclass(frozen=True)
class Probe:
    """A few steps of the run itself.

    Args:
        seconds, of_processor: of each step but the first, and what its process computed of these.
        peak: bytes that the process (the GPU) held at most.
        start: seconds from the command to the first step.
        completion: tokens of a sampled completion.
        mean, largest: micro-batches that it saw.
        seconds_by_formula: of such steps, before the probe.
        peak_by_formula: bytes.
    """

    seconds: tuple[float, ...]
    of_processor: tuple[float, ...]
    peak: float
    start: float
    completion: float | None
    mean: Load
    largest: Load
    seconds_by_formula: float
    peak_by_formula: float


@dataclass(frozen=True)
class Plan:
    """What a run will be.

    Args:
        method: of training.
        model, kind: its name and its class.
        settings: flags that are not at their defaults.
        decided: what hardware and launcher decide, in words.
        rows: to train on.
        steps: and micro-batches.
        num_parameters, num_trained: of the model.
        memory: of a process, by formula.
        peak: bytes that a process will hold, calibrated by a probe where there was one.
        upper: bytes that it may come to where completions grow to their limit.
        available: bytes that it may hold.
        holder: what holds it: "GPU" or "process".
        time: in seconds.
        disk: in bytes.
        findings: what to look at.
        assumptions: what is not known and was assumed.
        probe: what it measured.
        longest_row: tokens of a micro-batch for which memory suffices, about; None where none would.
    """

    method: str
    model: str
    kind: str
    settings: dict[str, Any]
    decided: dict[str, str]
    rows: RowsPlan
    steps: Steps
    num_parameters: int
    num_trained: int
    memory: Memory
    peak: float
    upper: float
    available: float
    holder: str
    time: TimePlan
    disk: DiskPlan
    findings: tuple[Finding, ...] = ()
    assumptions: tuple[str, ...] = field(default=())
    probe: Probe | None = None
    longest_row: int | None = None

    @property
    def fits(self) -> bool:
        """Whether memory suffices, as far as is known."""
        return self.upper <= self.available

    @property
    def tokens(self) -> float:
        """Tokens that are trained on in all, in the packed layout, over all processes."""
        return self.steps.tokens_in_step * self.steps.number

    def to_json(self) -> dict[str, Any]:
        """Plain data: the fields, and what follows from them."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        plain["memory"] |= {"peak_by_formula": self.memory.peak, "fullest": self.memory.fullest}
        plain["time"]["total"] = self.time.total
        plain["disk"]["total"] = self.disk.total
        plain["fits"], plain["tokens"] = self.fits, self.tokens
        plain["steps"] |= {"rows_in_step": self.steps.rows_in_step, "tokens_in_step": self.steps.tokens_in_step}
        return plain
