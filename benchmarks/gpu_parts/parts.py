"""The parts by name, and the process that runs them, one after the other."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .settings import FULL, TINY

# Seconds that each may take at most; what is left over goes to nobody. Of a run of steps, loading and writing the
# model are part of them. What matters most comes first: if time is up, the last ones are missing.
BUDGETS: dict[str, float] = {
    "attention": 20,
    "log-probs": 15,
    "engine": 25,
    "sft": 40,
    "rollouts": 75,
    "dpo": 40,
    "reward": 40,
    "grpo": 50,
    "rloo": 50,
    "waiting": 40,
    "sft, compiled": 100,
    "sft, lora": 30,
    "sft, recomputed": 25,
    "sft, one row": 25,
    "sft, bfloat16 weights": 25,
}
WITH_PEER = 3.0  # the peer's side of a part takes longer, and starts by itself
_OF_PEER = ("dpo", "reward", "grpo", "rloo")


def budget_of(name: str, with_peer: bool) -> float:
    """Seconds of a part."""
    return BUDGETS[name] * (WITH_PEER if with_peer and name in _OF_PEER else 1.0)


def work(folder: Path, names: list[str], tiny: bool, peer: Path | None) -> None:
    """Runs parts, and writes a line as each begins and as it ends.

    Args:
        folder: with `material/`, which the first of these processes writes, and `events.jsonl`.
        names: of the parts.
        tiny: in the size that a CPU runs in seconds.
        peer: interpreter of an environment with trl.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    setting = TINY if tiny else FULL
    _tell(folder, "start", facts=_facts(torch, device))
    material = folder / "material"
    if not material.exists():
        from .material import write

        _tell(folder, "material", facts=write(material, setting, device))
    for name in names:
        _tell(folder, "begin", part=name)
        began = time.perf_counter()
        try:
            found = _part(name, device, setting, material, budget_of(name, peer is not None), peer)()
        except Exception as error:  # of any kind: the other parts go on
            _tell(folder, "failed", part=name, seconds=time.perf_counter() - began, traceback=traceback.format_exc())
            if _has_lost_the_gpu(error):
                raise SystemExit(3) from error  # whoever watches starts another process for the rest
        else:
            _tell(folder, "done", part=name, seconds=time.perf_counter() - began, found=found)


def _part(
    name: str, device: str, setting: Any, material: Path, seconds: float, peer: Path | None
) -> Callable[[], dict[str, Any]]:
    from . import checks, rollouts, steps

    # Of a run's seconds, some go into loading and into the end.
    mostly = seconds * 0.7
    plain: dict[str, Callable[[], dict[str, Any]]] = {
        "attention": lambda: checks.attention_check(device),
        "log-probs": lambda: checks.logprobs_check(device, setting),
        "engine": lambda: checks.engine_check(device, setting),
        "waiting": lambda: checks.waiting_check(device, setting, material, mostly),
        "rollouts": lambda: rollouts.measure(device, setting, mostly),
    }
    if name in plain:
        return plain[name]
    if name in steps.SFT_WAYS:
        return lambda: steps.sft(name, setting, material, mostly)
    return lambda: steps.beside(name, setting, material, mostly, peer)


def _has_lost_the_gpu(error: Exception) -> bool:
    """Whether nothing can be computed any more in this process, as after a kernel that has read where it must not."""
    import torch

    lost = getattr(torch, "AcceleratorError", RuntimeError)
    return isinstance(error, lost) and "CUDA error" in str(error) and "out of memory" not in str(error)


def _facts(torch: Any, device: str) -> dict[str, Any]:
    import transformers

    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        facts |= {"device": about.name, "memory, GiB": about.total_memory / 2**30, "cuda": torch.version.cuda}
    else:
        facts["device"] = f"CPU, {torch.get_num_threads()} threads"
    return facts


def _tell(folder: Path, event: str, **more: Any) -> None:
    with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "time": time.time()} | more, default=str) + "\n")
