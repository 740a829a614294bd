"""What a run was planned to take, beside what it took: `posttrain plan` leaves a plan in the cache, a run that has one
tells how it came out.

Neither the model nor metrics files know of it: whether somebody has planned a run changes nothing of it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from posttrain.cache import cache_root
from posttrain.disk import write_text
from posttrain.runs import digest_of, what_it_depends_on

if TYPE_CHECKING:
    from posttrain.config import CommonConfig

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"


class StepClock(TrainerCallback):
    """Seconds of each optimizer step, its rollouts with it; without log lines, evaluations and checkpoints.

    Attributes:
        seconds: of the steps so far.
        of_processor: what this process computed of these, on all cores: the same whatever else a machine does.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.of_processor: list[float] = []
        self._set()

    def _set(self, *args: Any, **kwargs: Any) -> None:
        self._mark, self._processor_mark = time.perf_counter(), time.process_time()

    on_train_begin = on_log = on_evaluate = on_save = on_epoch_begin = _set

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._mark)
        self.of_processor.append(time.process_time() - self._processor_mark)
        self._set()

    @property
    def mean(self) -> float | None:
        """Seconds of the steps after the first, which sets everything up; None before there are any."""
        return mean_of_later(self.seconds)


def mean_of_later(seconds: Sequence[float]) -> float | None:
    """Of all but the first; None where there are no others."""
    return sum(seconds[1:]) / len(seconds[1:]) if len(seconds) > 1 else None


def plan_file(config: CommonConfig, processes: int) -> Path:
    """Where the plan of a run is kept: under a hash of what the run depends on and flags tell.

    Args:
        config: of the run.
        processes: that train.
    """
    about = what_it_depends_on(config)
    named = (config.model_name_or_path, config.dataset_name, *(source.path for source in config.datasets))
    places = [str(Path(one).resolve()) if one and Path(one).exists() else one for one in named]
    key = digest_of([about["method"], about["flags"], places, processes])[:24]
    return cache_root(config.cache_dir) / "plans" / f"{key}.json"


def read_plan(file: Path) -> dict[str, Any] | None:
    """A plan with its outcomes; None where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "predicted" in found else None


def outcome_of(predicted: dict[str, Any], peak_mib: float, seconds: float | None, steps: int) -> dict[str, Any]:
    """What came of a prediction.

    Args:
        predicted: peak_memory_mib and seconds_a_step, and whether a probe measured them.
        peak_mib: what the run held.
        seconds: of a step; None: there were too few.
        steps: that it took.
    """
    found: dict[str, Any] = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "predicted": predicted,
        "steps": steps,
        "peak_memory_mib": peak_mib,
        "peak_memory_error": predicted["peak_memory_mib"] / peak_mib - 1,
    }
    if seconds:
        found |= {"seconds_a_step": seconds, "seconds_a_step_error": predicted["seconds_a_step"] / seconds - 1}
    return found


def tell_outcome(file: Path, run: Path, peak_mib: float, clock: StepClock) -> None:
    """Says how a planned run came out, and writes it beside the plan and into the run's folder.

    Args:
        file: of the plan.
        run: the run's folder.
        peak_mib: memory that the process (the GPU) held at most.
        clock: of the run.
    """
    planned = read_plan(file)
    if planned is None:
        return
    predicted = planned["predicted"]
    outcome = outcome_of(predicted, peak_mib, clock.mean, len(clock.seconds))
    outcome["processor_seconds_a_step"] = mean_of_later(clock.of_processor)
    text = f"Planned {predicted['peak_memory_mib']:,.0f} MiB and {predicted['seconds_a_step']:.3f} s a step; it took "
    text += f"{peak_mib:,.0f} MiB ({_percent(peak_mib, predicted['peak_memory_mib'])})"
    if clock.mean:
        text += f" and {clock.mean:.3f} s ({_percent(clock.mean, predicted['seconds_a_step'])})"
    logger.info("%s.", text)
    planned["outcomes"] = [*planned.get("outcomes", []), outcome]
    content = json.dumps(planned, indent=1) + "\n"
    write_text(run / PLAN_FILE, json.dumps({"plan": planned["plan"], "outcome": outcome}, indent=1) + "\n")
    write_text(file, content)


def _percent(actual: float, predicted: float) -> str:
    """By how much it was more or less than planned."""
    return f"{(actual / predicted - 1) * 100:+.0f}%".replace("-", "−")
