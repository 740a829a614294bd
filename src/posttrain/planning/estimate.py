"""`plan(config, launch)`: what a run will be, from its flags, its rows and its model's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from posttrain.config import CommonConfig, LaunchOptions
from posttrain.config.fields import flags_of
from posttrain.config.secrets import SECRETS
from posttrain.data.packing import best_fit_decreasing
from posttrain.planning.advice import advise
from posttrain.planning.batches import Load, Steps
from posttrain.planning.case import MOST_READ, Case, case_of
from posttrain.planning.devices import CPU_FLOPS_OF_A_CORE, MODEL_FLOPS_SHARE
from posttrain.planning.disk_space import disk_plan
from posttrain.planning.memory import CPU_BASE, CPU_CREEP, memory_of
from posttrain.planning.predict import (
    GROWTH_AT_MOST,
    GROWTH_IN_MEAN,
    longest_completion,
    predict_memory,
    run_time,
    step_seconds,
)
from posttrain.planning.report import Plan, Probe, RowsPlan

_PACKED_AT_MOST = 50_000  # documents, to see what packing would give
_OF_STAGE = ("output_dir", "work_dir", "metrics_file", "plots_file", "report_to", "env")


def plan(
    config: CommonConfig,
    launch: LaunchOptions | None = None,
    *,
    gpu: str | None = None,
    memory_gib: float | None = None,
    most_rows: int = MOST_READ,
    tokenizer: Any = None,
    probe: Callable[[Case, Steps], Probe] | None = None,
) -> Plan:
    """Plan a run. No weights are loaded: the model's config.json, its tokenizer and the rows suffice.

    Args:
        config: of the run.
        launch: in which processes; None: in one.
        gpu: plan for this one (a key of devices.GPUS), which need not be here; None: this machine's.
        memory_gib: of it, where that is another one.
        most_rows: rows of the data to tokenise where they are streamed, or many and not prepared yet.
        tokenizer: of the run; None: it is loaded.
        probe: takes a few steps of the run, and measures them.

    Raises:
        UserError: as training would raise it, for flags, rows and the model's config.
    """
    case = case_of(config, launch or LaunchOptions(), gpu, memory_gib, most_rows, tokenizer)
    longest = longest_completion(config)
    steps = case.steps(longest)
    measured = probe(case, steps) if probe is not None else None
    now = longest if measured is None or measured.completion is None else measured.completion
    completion, grown = (now + share * (longest - now) for share in (GROWTH_IN_MEAN, GROWTH_AT_MOST))
    steps = dataclasses.replace(case.steps(completion), largest=case.steps(grown).largest)
    of_run = (steps.sizes, steps.generations)
    memory = predict_memory(case, steps.largest, grown, *of_run)
    upper = memory if now == longest else predict_memory(case, case.steps(longest).largest, longest, *of_run)
    seconds = step_seconds(case, steps, completion)
    peak, highest = memory.peak, upper.peak
    if measured is not None:
        off = measured.peak - measured.peak_by_formula
        if case.device.kind == "cpu":
            off += CPU_CREEP * max(0.0, measured.peak - CPU_BASE)
        peak, highest = peak + off, highest + off
        seconds *= float(np.mean(measured.seconds)) / measured.seconds_by_formula
    disk = disk_plan(config, case.arguments, case.shape, steps, case.rows, case.evaluation, completion)
    time = run_time(case, steps, completion, seconds, disk, measured)
    found = Plan(
        method=config.method,
        model=case.shape.name,
        kind=case.shape.kind,
        settings=_settings(config),
        decided=case.decided.words,
        rows=_rows_plan(case, steps),
        steps=steps,
        num_parameters=case.shape.num_parameters,
        num_trained=case.shape.num_trained,
        memory=memory,
        peak=peak,
        upper=highest,
        available=case.device.usable / (1 if case.device.kind == "cuda" else case.decided.here),
        holder="GPU" if case.device.kind == "cuda" else "process",
        time=time,
        disk=disk,
        assumptions=(*case.assumptions, *_assumed(case, measured)),
        probe=measured,
        longest_row=_longest_row(case, steps, completion, highest),
    )
    return dataclasses.replace(found, findings=tuple(advise(found, case)))


# -- what is told


def _settings(config: CommonConfig) -> dict[str, Any]:
    """The flags that are not at their defaults, without secrets and places."""
    names = [name for name in flags_of(type(config)) if name in config.explicit and name not in SECRETS]
    return {name: getattr(config, name) for name in names if name not in _OF_STAGE}


def _rows_plan(case: Case, steps: Steps) -> RowsPlan:
    rows, config = case.rows, case.config
    counts, lengths = rows.counts, rows.lengths
    is_packed = bool(getattr(config, "packing", False))
    limit = getattr(config, "max_length", None)
    packing = packable = None
    if config.method == "sft" and limit:
        if is_packed:
            packing = float(lengths.tokens.mean() / limit)
        else:
            packable = _packable(lengths.tokens, limit)
    computed = float(lengths.tokens.sum())
    rectangle = steps.mean.padded
    saved = 1 - steps.mean.tokens / rectangle if rectangle and not is_packed else 0.0
    dropped = sum(count for name, count in counts.items() if name.startswith("rows_dropped"))
    known = rows.num_rows is not None
    return RowsPlan(
        source=rows.name,
        read=counts["rows_read"] if known else None,
        kept=rows.num_rows,
        dropped=dropped,
        truncated=counts.get("rows_truncated", 0),
        tokens_truncated=counts.get("tokens_truncated", 0),
        tokens=(counts.get("tokens") or int(computed)) if known else None,
        targets=counts.get("targets") if known else None,
        longest=int(lengths.longest.max()),
        packing=packing,
        packable=packable,
        saved=max(0.0, saved),
        looked_at=rows.num_read,
        evaluation=len(case.evaluation.lengths) if case.evaluation else 0,
        preparation=rows.preparation,
    )


def _packable(tokens: Any, limit: int) -> float:
    """Tokens of rows that best-fit packing would fill, by what they can hold."""
    some = np.minimum(tokens[:_PACKED_AT_MOST], limit)
    return float(some.sum() / (len(best_fit_decreasing(some, limit)) * limit))


def _longest_row(case: Case, steps: Steps, completion: float, highest: float) -> int | None:
    """Tokens of the largest micro-batch for which memory suffices: it grows with them in a straight line."""
    room = case.device.usable / (1 if case.device.kind == "cuda" else case.decided.here)
    load = steps.largest

    def peak(factor: float) -> float:
        scaled = Load(*(value * factor for value in dataclasses.astuple(load)))
        return memory_of(case.shape, case.setting, scaled).peak

    most = longest_completion(case.config)
    # What a probe has corrected, and what does not grow with a row.
    shift = highest - predict_memory(case, case.steps(most).largest, most, sizes=0).peak
    low, high = 0.0, 1.0
    if peak(0.0) + shift > room:
        return None
    while peak(high) + shift < room and high < 2**20:
        low, high = high, high * 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if peak(middle) + shift < room else (low, middle)
    return int(load.tokens * low)


def _assumed(case: Case, measured: Probe | None) -> list[str]:
    found = []
    if measured is None and case.device.kind == "cuda":
        found.append(f"{MODEL_FLOPS_SHARE:.0%} of the GPU's peak is reached; --probe measures, where there is the GPU")
    elif measured is None:
        found.append(f"{CPU_FLOPS_OF_A_CORE / 1e9:.0f} billion operations a second of a core; --probe measures")
    if case.samples and measured is None:
        found.append(f"completions of {longest_completion(case.config):,.0f} tokens, the limit; --probe measures them")
    elif case.samples and measured is not None and measured.completion is not None:
        found.append(
            f"completions have {measured.completion:,.0f} tokens in the probe, and grow while the policy learns: by a "
            f"quarter of what is left to {longest_completion(case.config):,.0f} in the mean of the run, by half at most"
        )
    if getattr(case.config, "use_vllm", False):
        found.append("vLLM is not counted: neither its time and memory, nor the weights that it is sent as files")
    if case.setting.compiled:
        found.append(
            "compiled layers keep what the others do, and take no longer: what torch.compile makes of them is not known"
        )
    if case.rows.is_sampled:
        found.append(f"all rows are as the first {case.rows.num_read:,}")
    if not case.shape.saved.is_counted:
        found.append("activations by the formula of a gated decoder: this model cannot be traced without numbers")
    if case.decided.processes > 1:
        found.append("sending between processes takes no time")
    if case.setting.on_gpu:
        found.append("0.8 GiB of the GPU go to the CUDA context, and 6% of it to gaps between tensors")
    return found
