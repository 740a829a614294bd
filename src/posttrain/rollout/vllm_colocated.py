"""vLLM in the trainer's own processes: each has one that holds a whole model and makes this process's completions."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.config.paths import adapter_base
from posttrain.errors import EngineLost, UserError, install
from posttrain.reference import mixed_precision
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_engine import Drawn, parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from posttrain.config import PolicyConfig

PAGE = "vllm.md#in-the-trainers-processes"


def check_installed() -> None:
    """Whether vLLM can be had in this process; imports nothing.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"vllm_mode colocate runs vLLM in this process, and it is not installed here: {install('vllm')}, or give "
            "--vllm_mode server and start it in an environment of its own",
            PAGE,
        )


class VLLMInProcess:
    """vLLM in this process.

    Args:
        config: of the run.
        model: the policy. vLLM computes in the type of its products, in mixed precision not that of its weights.
        arguments: of the run.
        longest: tokens of the longest prompt and completion; None: not known.
    """

    loads_everywhere = True

    def __init__(
        self, config: PolicyConfig, model: PreTrainedModel, arguments: TrainingArguments, longest: int | None = None
    ) -> None:
        # Weights are handed over in this process, and not to another one.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self._vllm, self._sleeps = vllm, False
        # Several processes have a group already, of which each takes a part of its own.
        launched = {"distributed_executor_backend": "external_launcher"} if arguments.world_size > 1 else {}
        base = adapter_base(str(config.model_name_or_path))  # adapters come merged
        # It has to have room in its cache for one row of so many tokens; by itself, for all that the model knows.
        room = config.vllm_max_model_length or longest
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        try:
            self._llm = vllm.LLM(
                model=base or config.model_name_or_path,
                revision=None if base else config.model_revision,
                trust_remote_code=config.trust_remote_code,
                dtype=str(mixed_precision(arguments) or model.dtype).removeprefix("torch."),
                model_impl=config.vllm_model_impl,
                enable_sleep_mode=config.vllm_enable_sleep_mode,
                gpu_memory_utilization=config.vllm_gpu_memory_utilization,
                max_model_len=room,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                seed=arguments.seed,
                **launched,
            )
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            raise UserError(f"vLLM cannot be started in this process: {error}", PAGE) from error
        finally:  # it sets both for the whole process
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
        self._may_sleep = config.vllm_enable_sleep_mode
        self._sleep()

    def load(self, folder: Path, version: str) -> None:
        """Reads the weights of a folder into vLLM."""
        try:
            self._wake()
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._llm.reset_prefix_cache()
        except Exception as error:
            raise EngineLost(f"vLLM does not take the weights in {folder}: {error}", PAGE) from error

    def remember(self, folder: Path, version: str) -> None:
        """Nothing: each process loads for itself."""

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        regex: str | None = None,
    ) -> list[Drawn]:
        """A completion of each prompt."""
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            self._wake()
            how = [self._vllm.SamplingParams(**_parameters(sampling, seed, regex)) for seed in seeds]
            return [_drawn(output.outputs[0]) for output in self._llm.generate(asked, how, use_tqdm=False)]
        except Exception as error:
            raise EngineLost(f"vLLM in this process: {type(error).__name__}: {error}", PAGE) from error

    def rest(self) -> None:
        """Sleeps, where it may."""
        self._sleep()

    def close(self) -> None:
        """Ends vLLM."""
        del self._llm

    def _sleep(self) -> None:
        """Gives the GPU's memory of weights and cache back; the weights wait on the CPU."""
        if self._may_sleep and not self._sleeps:
            self._llm.sleep(level=1)
            self._sleeps = True

    def _wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()
            self._sleeps = False


def _drawn(output: Any) -> Drawn:
    ids = np.array(output.token_ids, dtype=np.int64)
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return Drawn(ids, np.array(logprobs, dtype=np.float32), output.finish_reason == "stop")


def _parameters(sampling: Sampling, seed: int, regex: str | None) -> dict[str, Any]:
    chosen = parameters(sampling, seed, regex)
    if regex is not None:
        from vllm.sampling_params import StructuredOutputsParams

        chosen["structured_outputs"] = StructuredOutputsParams(**chosen["structured_outputs"])
    return chosen
