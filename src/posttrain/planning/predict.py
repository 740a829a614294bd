"""Memory and time of a case, by formula, and what a probe makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain.config import CommonConfig, PolicyConfig
from posttrain.planning.batches import Load, Steps
from posttrain.planning.case import Case
from posttrain.planning.disk_space import num_evaluations
from posttrain.planning.generations import load_of_evaluation
from posttrain.planning.memory import Memory, Sampling, memory_of
from posttrain.planning.report import DiskPlan, Probe, TimePlan
from posttrain.planning.work import Work, forward_operations, seconds_of, work_of

_START, _START_OF_A_BYTE = 8.0, 2.5e-9  # seconds: imports and trials; reading and hashing weights, twice
_BYTES_WRITTEN = 3e8  # a second, to a disk that is waited for
_SAVE = 0.08  # seconds that a checkpoint takes however small
# Completions grow while a policy learns: by so much of what is left to their limit at their longest, and in the mean of
# a run. Measured on GRPO and RLOO of the embedded experiment, whose answers grow from 21 to 38 tokens of 80.
GROWTH_AT_MOST, GROWTH_IN_MEAN = 0.5, 0.25


def predict_memory(
    case: Case, largest: Load, completion: float, sizes: int, generations: int = 0, evaluates: bool = True
) -> Memory:
    """Of a process.

    Args:
        case: of the run.
        largest: micro-batch.
        completion: tokens of one.
        sizes, generations: of the steps.
        evaluates: evaluations are counted in.
    """
    config: Any = case.config
    evaluation, eval_sampling = None, None
    if case.evaluation is not None and evaluates:
        evaluation = _evaluation_load(case, completion)[1]
    sampling = None
    if _samples_here(case):
        sampling = _sampling(case, completion)
        if evaluation is not None:
            limit = float(config.setting("max_completion_length", True))
            expected = min(completion, limit)
            longest = float(case.evaluation.lengths.tokens.max()) if case.evaluation else 0.0
            count = min(evaluation.sequences, config.rollout_batch_size)
            eval_sampling = Sampling(count, evaluation.rows, longest, limit, expected)
    passes = bool(case.setting.reference_bytes or case.setting.reward_bytes)
    shape, generations = case.shape, generations if _samples_here(case) else 0
    compiled = sizes * (shape.forward_products + shape.backward_products) + generations * shape.forward_products
    return memory_of(shape, case.setting, largest, evaluation, sampling, eval_sampling, passes, compiled)


def _samples_here(case: Case) -> bool:
    """Whether completions come from the trainer, and not from a vLLM."""
    return case.samples and not getattr(case.config, "use_vllm", False)


def _sampling(case: Case, completion: float) -> Sampling:
    config: Any = case.config
    here = case.arguments.per_device_train_batch_size * case.steps_of_generation
    count = min(here, config.rollout_batch_size)
    longest = float(case.rows.lengths.tokens.max())
    prompts = max(1.0, count / config.num_generations)
    return Sampling(count, prompts, longest, float(config.max_completion_length), min(completion, _longest(config)))


def _longest(config: Any) -> float:
    return float(config.max_completion_length)


def longest_completion(config: CommonConfig) -> float:
    """Tokens that a completion may have; 0 of methods that sample none."""
    return _longest(config) if isinstance(config, PolicyConfig) else 0.0


def work_of_step(case: Case, steps: Steps, completion: float, load: Load | None = None) -> Work:
    """Operations of an optimizer step of a process.

    Args:
        case, steps: of the run.
        completion: tokens of one.
        load: a micro-batch; None: the mean one.
    """
    config: Any = case.config
    passes = 0.0
    if config.method == "dpo" and not config.precompute_ref_log_probs:
        passes = 1.0
    if case.samples:
        generation = case.steps_of_generation
        off_policy = steps.micro_batches % (generation * config.num_iterations) != 0
        in_half = case.setting.half or case.shape.number == 2
        from_vllm = config.use_vllm and getattr(config, "vllm_importance_sampling_correction", False)
        rescored = (in_half or config.use_vllm) and (off_policy or config.method == "rloo")
        passes = bool(config.beta) + float(rescored or from_vllm)
    sampling = _sampling(case, completion) if _samples_here(case) else None
    load = load or steps.mean
    generations = 0.0
    if sampling is not None:
        of_step = steps.micro_batches / (case.steps_of_generation * config.num_iterations)
        here = case.arguments.per_device_train_batch_size * case.steps_of_generation
        generations = of_step * here / max(1.0, sampling.completions)
        mean_prompt = (load.tokens - load.targets) / max(1.0, load.rows)
        sampling = dataclasses.replace(sampling, prompt=mean_prompt)
    share = case.reward_parameters / max(1, case.shape.num_parameters)
    rewards = forward_operations(case.shape, dataclasses.replace(load, targets=0)) * share
    return work_of(case.shape, case.setting, load, passes, rewards, sampling, generations)


def step_seconds(case: Case, steps: Steps, completion: float, load: Load | None = None) -> float:
    """Seconds of an optimizer step, at the speed that is assumed; arguments as for `work_of_step`."""
    work = work_of_step(case, steps, completion, load)
    return seconds_of(work, case.shape, case.setting, case.device)


def _evaluation_load(case: Case, completion: float) -> tuple[Load, Load, int]:
    assert case.evaluation is not None
    size, lengths = case.arguments.per_device_eval_batch_size, case.evaluation.lengths
    padded = not case.shape.by_segments
    if not case.samples:
        return load_of_evaluation(lengths, size, padded=padded)
    config: Any = case.config
    group = config.num_generations_eval or config.num_generations
    limit = min(completion, float(config.setting("max_completion_length", True)))
    return load_of_evaluation(lengths, size * case.decided.processes, group, limit)


def run_time(
    case: Case, steps: Steps, completion: float, seconds: float, disk: DiskPlan, measured: Probe | None
) -> TimePlan:
    """Of the whole run.

    Args:
        case, steps, completion: as above.
        seconds: of a step.
        disk: what is written.
        measured: by a probe.
    """
    evaluation = 0.0
    if case.evaluation is not None:
        mean, _, number = _evaluation_load(case, completion)
        speed = seconds / max(1e-9, step_seconds(case, steps, completion))
        work = work_of_step(case, steps, completion, mean)
        forward = work.training / (4 if case.setting.recomputed else 3) / max(1, steps.micro_batches)
        once = Work(forward, 0.0, 0.0, work.segments / 2, 1.0, 0.0)
        if case.samples:
            share = mean.sequences / max(1.0, steps.mean.sequences * steps.micro_batches)
            once = Work(forward, 0.0, work.sampling * share, work.segments / 2, 1.0, work.drawn)
        one = seconds_of(once, case.shape, case.setting, case.device) * speed
        evaluation = one * number / case.decided.processes * num_evaluations(case.arguments, steps)
    start = _START + _START_OF_A_BYTE * case.shape.weight_bytes if measured is None else measured.start
    if getattr(case.config, "precompute_ref_log_probs", False) and case.rows.num_rows:
        start += seconds / 3 * case.rows.num_rows / max(1, steps.rows_in_step)
    start += sum(rows.preparation.seconds for rows in (case.rows, case.evaluation) if rows and rows.preparation)
    saving = disk.num_saves * (_SAVE + disk.checkpoint / _BYTES_WRITTEN) + _SAVE + disk.model / _BYTES_WRITTEN
    return TimePlan(seconds, start, seconds * steps.number, evaluation, saving, measured is not None)
