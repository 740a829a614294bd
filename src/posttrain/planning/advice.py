"""What to look at in a plan before it is run, each with what to type about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.config.fields import flags_of
from posttrain.disk import in_words
from posttrain.inspection.findings import Finding
from posttrain.out_of_memory import memory_advice
from posttrain.planning.disk_space import every_steps, num_evaluations
from posttrain.planning.report import Plan

if TYPE_CHECKING:
    from posttrain.planning.case import Case

_CUT = 0.01  # share of rows that may be cut, as `posttrain inspect` has it
_STEP = 64  # max_length is proposed in multiples of this
_LARGE = 500_000_000  # parameters
_FULL_RATE, _ADAPTER_RATE = 1e-4, 5e-5  # of all weights at most, of adapters at least
_RATES = {"sft": 2e-4, "reward": 1e-3, "dpo": 1e-5, "grpo": 1e-5, "rloo": 1e-5}  # ten times that of all weights
_FEW_STEPS, _MANY_EPOCHS, _TINY = 20, 5, 2000
_PACKING = 0.6  # of a row filled; below that packing is proposed
_GIB = 2**30


def advise(plan: Plan, case: Case) -> Iterator[Finding]:
    """Warnings about a run.

    Args:
        plan: without findings.
        case: that it was made of.
    """
    for each in (_memory, _disk, _lengths, _ends, _packing, _batches, _generations, _rate, _schedule, _evaluation):
        yield from each(plan, case)


def _memory(plan: Plan, case: Case) -> Iterator[Finding]:
    where = "the GPU" if case.device.kind == "cuda" else "this machine"
    room = in_words(plan.available)
    if not plan.fits:
        advice = memory_advice(case.config, on_gpu=case.device.kind == "cuda")
        first = next((flags for some in advice.values() for flags, _ in some), "")
        if plan.memory.resident > plan.available:
            first = _less_held(case)
        elif not case.setting.recomputed:
            first = "--gradient_checkpointing"
        text = f"needs {in_words(plan.upper)} and {where} has {room} for it"
        if plan.peak <= plan.available:
            text = f"fits now ({in_words(plan.peak)}), and not when completions grow to their limit: {text}"
        yield Finding("bad", f"{text}: {first}" if first else text, tuple(first.split()))
    elif plan.upper > 0.9 * plan.available:
        yield Finding("warn", f"{in_words(plan.upper)} of {room}: a longer row or another process ends the run")


def _less_held(case: Case) -> str:
    """Flags with which a process holds less from the first step to the last; empty: none that are known."""
    config, on_gpu = case.config, case.device.kind == "cuda"
    if on_gpu and case.setting.processes > 1 and not case.setting.sharded:
        return "--accelerate_config fsdp2"
    if not config.use_peft:
        return "--use_peft"
    if config.load_in_4bit or config.load_in_8bit or not on_gpu:
        return ""
    return "--dtype bfloat16" if case.shape.number > 2 else "--load_in_4bit"


def _disk(plan: Plan, case: Case) -> Iterator[Finding]:
    disk = plan.disk
    written = disk.num_saves * disk.checkpoint
    if disk.total > disk.free:
        yield Finding(
            "bad",
            f"the run keeps up to {in_words(disk.total)} on a disk with {in_words(disk.free)} free: "
            "--save_total_limit 1 keeps one checkpoint at a time",
            ("--save_total_limit", "1"),
        )
    elif case.arguments.save_total_limit is None and disk.num_kept > 2 and disk.num_kept * disk.checkpoint > 10 * _GIB:
        yield Finding(
            "warn",
            f"{disk.num_saves} checkpoints of {in_words(disk.checkpoint)} are kept: --save_total_limit 2",
            ("--save_total_limit", "2"),
        )
    if written > 200 * _GIB or (plan.time.saving > 0.2 * plan.time.training and plan.time.saving > 60):
        every = max(1, plan.steps.number // 10)
        yield Finding(
            "warn",
            f"{disk.num_saves} checkpoints are written, {in_words(written)} in all: --save_steps {every} writes ten",
            ("--save_steps", str(every)),
        )


def _lengths(plan: Plan, case: Case) -> Iterator[Finding]:
    rows = plan.rows
    read = case.rows.counts["rows_read"]
    limit = getattr(case.config, "max_length", None)
    cut = rows.truncated / max(1, read)
    if cut > _CUT and limit:
        more = _longer(limit, case)
        yield Finding(
            "warn",
            f"--max_length {limit} cuts {rows.truncated:,} of {read:,} rows ({cut:.0%}), which lose "
            f"{rows.tokens_truncated:,} tokens: --max_length {more}" + _of_model(more, case),
            ("--max_length", str(more)),
        )
    dropped = rows.dropped / max(1, read)
    if dropped > _CUT:
        reasons = [name for name in case.rows.counts if name.startswith("rows_dropped") and case.rows.counts[name]]
        names = ", ".join(name.removeprefix("rows_dropped_").replace("_", " ") for name in reasons)
        yield Finding(
            "warn",
            f"{rows.dropped:,} of {read:,} rows ({dropped:.0%}) are left out: {names}; `posttrain inspect` tells more",
        )
    yield from _positions(plan, case)


def _positions(plan: Plan, case: Case) -> Iterator[Finding]:
    """Rows that are longer than what the model has positions for; of prompts, with their completions."""
    number, longest = case.shape.positions, plan.rows.longest
    if number is None:
        return
    text = f"and the model has {number:,} positions"
    if not case.samples and longest > number:
        flags = ("--max_length", str(number))
        yield Finding("warn", f"rows of up to {longest:,} tokens, {text}: {' '.join(flags)}", flags)
    if case.samples:
        completion: int = case.config.max_completion_length  # type: ignore[attr-defined]
        if longest + completion > number:
            flags = ("--max_completion_length", str(max(1, number - longest)))
            text = f"prompts of up to {longest:,} tokens and completions of {completion:,}, {text}: {' '.join(flags)}"
            yield Finding("bad", text, flags)


def _longer(limit: int, case: Case) -> int:
    """A limit that leaves 99% of the rows whole, guessed from how long the cut ones were on average."""
    counts = case.rows.counts
    lost = counts["tokens_truncated"] / max(1, counts["rows_truncated"])
    # The tail of lengths is taken to fall off exponentially beyond the limit.
    share = counts["rows_truncated"] / max(1, counts["rows_read"])
    wanted = limit + lost * np.log(max(share, 1.01 * _CUT) / _CUT)
    return int(-(-wanted // _STEP) * _STEP)


def _of_model(length: int, case: Case) -> str:
    positions = case.shape.positions
    return f" (the model has {positions:,} positions)" if positions is not None and length > positions else ""


def _ends(plan: Plan, case: Case) -> Iterator[Finding]:
    counts = case.rows.counts
    if case.config.data_kind in ("sft", "preference") and counts.get("eos_targets") == 0 and counts.get("targets"):
        yield Finding(
            "bad",
            "the EOS token is never trained on, so the model will not learn to stop; `posttrain inspect` "
            "shows how rows end",
        )


def _packing(plan: Plan, case: Case) -> Iterator[Finding]:
    if plan.rows.packable is None or plan.method != "sft":
        return
    config: Any = case.config
    limit = config.max_length
    filled = float(case.rows.lengths.tokens.mean()) * case.steps(0.0).rows_in_micro_batch
    if case.device.kind == "cuda" and float(case.rows.lengths.tokens.mean()) < limit / 4 and filled < 8192:
        per_row = limit * plan.rows.packable / float(case.rows.lengths.tokens.mean())
        yield Finding(
            "warn",
            f"a micro-batch holds {filled:,.0f} tokens; with --packing a row of {limit:,} holds {per_row:.1f} "
            f"documents and is {plan.rows.packable:.0%} full, so that a GPU has more to do at a time",
            ("--packing",),
        )


def _batches(plan: Plan, case: Case) -> Iterator[Finding]:
    steps, kept = plan.steps, plan.rows.kept
    unit = {"sft": "rows", "reward": "pairs", "dpo": "pairs"}.get(plan.method, "completions")
    if kept is not None and not case.samples and kept < steps.rows_in_step:
        fits = max(1, kept // max(1, steps.micro_batches * steps.processes))
        yield Finding(
            "warn",
            f"{kept:,} {unit} are fewer than a step takes ({steps.rows_in_step:,}): every step sees all of them: "
            f"--per_device_train_batch_size {fits}",
            ("--per_device_train_batch_size", str(fits)),
        )
    elif not case.samples and steps.rows_in_last and steps.rows_in_last < steps.rows_in_micro_batch / 4:
        yield Finding(
            "warn",
            f"the last micro-batch of an epoch has {steps.rows_in_last} of {steps.rows_in_micro_batch} {unit}, and "
            "weighs as much as a full one where it is a step of its own: --dataloader_drop_last leaves it out",
            ("--dataloader_drop_last",),
        )
    if steps.rows_in_step < 8 and plan.num_parameters > _LARGE:
        yield Finding(
            "warn",
            f"a step takes {steps.rows_in_step} {unit}, which makes its gradient noisy: --gradient_accumulation_steps "
            f"{-(-16 // (steps.rows_in_micro_batch * steps.processes))}",
            ("--gradient_accumulation_steps", str(-(-16 // (steps.rows_in_micro_batch * steps.processes)))),
        )


def _generations(plan: Plan, case: Case) -> Iterator[Finding]:
    if not case.samples:
        return
    config: Any = case.config
    steps = case.steps_of_generation
    completions = plan.steps.rows_in_micro_batch * plan.steps.processes * steps
    prompts, kept = completions // config.num_generations, plan.rows.kept
    if kept is not None and kept < prompts:
        size = kept * config.num_generations
        yield Finding(
            "warn",
            f"a generation asks {prompts:,} prompts and there are {kept:,}: the same ones come several times: "
            f"--generation_batch_size {size}",
            ("--generation_batch_size", str(size)),
        )
    if config.num_generations < 4:
        yield Finding(
            "warn",
            f"{config.num_generations} completions of a prompt are little to compare each other with: "
            "--num_generations 8",
            ("--num_generations", "8"),
        )
    updates = steps * config.num_iterations / plan.steps.micro_batches
    if updates > 4:
        yield Finding(
            "warn",
            f"a generation is trained on in {updates:.0f} steps, the last of them far from the policy that wrote it: "
            f"--gradient_accumulation_steps {plan.steps.micro_batches * max(1, round(updates / 2))}",
            ("--gradient_accumulation_steps", str(plan.steps.micro_batches * max(1, round(updates / 2)))),
        )


def _rate(plan: Plan, case: Case) -> Iterator[Finding]:
    rate, config = case.config.learning_rate, case.config
    default: Any = flags_of(type(config))["learning_rate"].default
    low = min(_ADAPTER_RATE, 2 * default)
    if config.use_peft and 0 < rate <= low:
        better = _RATES[plan.method]
        yield Finding(
            "warn",
            f"a learning rate of {rate:g} is one for all weights; adapters learn with about ten times that: "
            f"--learning_rate {better:g}",
            ("--learning_rate", f"{better:g}"),
        )
    elif not config.use_peft and rate >= _FULL_RATE and plan.num_parameters > _LARGE and plan.method != "reward":
        better = _RATES[plan.method] / 10
        yield Finding(
            "warn",
            f"a learning rate of {rate:g} is one for adapters; all {plan.num_parameters / 1e9:.2g}B weights learn "
            f"with a tenth of that or less: --learning_rate {better:g}",
            ("--learning_rate", f"{better:g}"),
        )


def _schedule(plan: Plan, case: Case) -> Iterator[Finding]:
    steps = plan.steps
    if steps.warmup > steps.number / 2 and steps.number > 1:
        yield Finding(
            "warn",
            f"the learning rate rises for {steps.warmup:,} of {steps.number:,} steps: --warmup_steps 0.05",
            ("--warmup_steps", "0.05"),
        )
    if steps.epochs is not None and steps.epochs > _MANY_EPOCHS and not case.samples and (plan.rows.kept or 0) < _TINY:
        yield Finding(
            "warn",
            f"{steps.epochs:.0f} passes over {plan.rows.kept:,} rows, which the model will know by heart: "
            "--num_train_epochs 3",
            ("--num_train_epochs", "3"),
        )
    if steps.number < _FEW_STEPS and steps.micro_batches > 1:
        less = max(1, steps.micro_batches * steps.number // _FEW_STEPS)
        yield Finding(
            "warn",
            f"{steps.number} optimizer steps in all: --gradient_accumulation_steps {less}",
            ("--gradient_accumulation_steps", str(less)),
        )


def _evaluation(plan: Plan, case: Case) -> Iterator[Finding]:
    if case.evaluation is None:
        return
    number = num_evaluations(case.arguments, plan.steps)
    every = every_steps(case.arguments.eval_steps or case.arguments.logging_steps, plan.steps.number)
    if number > 2 and plan.time.evaluation > 0.5 * plan.time.training:
        wanted = int(every * plan.time.evaluation / (0.2 * max(1e-9, plan.time.training))) + 1
        seldom = min(wanted, plan.steps.number)
        yield Finding(
            "warn",
            f"{number} evaluations take {plan.time.evaluation / max(1e-9, plan.time.training):.0%} of the time of "
            f"training: --eval_steps {seldom}",
            ("--eval_steps", str(seldom)),
        )
