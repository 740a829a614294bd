# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""Flags of other engines for generation than this project's own: vLLM, and those that are refused or without effect
(config/effects.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from posttrain.config.fields import flag

if TYPE_CHECKING:
    from posttrain.config.policy import GRPOConfig, PolicyConfig

_IS_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(kw_only=True)
class GenerationEngineFlags:
    """Other engines for generation"""

    use_vllm: bool = flag(False, "Generate completions with vLLM.")
    vllm_mode: str = flag("colocate", "vLLM in the trainer's processes, or a server.", choices=("colocate", "server"))
    vllm_model_impl: str = flag("vllm", "Whose code of the model vLLM runs: vllm or transformers.")
    vllm_enable_sleep_mode: bool = flag(False, "Free vLLM's memory while the trainer works.")
    vllm_structured_outputs_regex: str | None = flag(None, "Regular expression that completions follow.")
    vllm_server_base_url: str | None = flag(None, "Address of the server, such as http://localhost:8000.")
    vllm_server_host: str = flag("0.0.0.0", "Host of the server, where no address is given.")
    vllm_server_port: int = flag(8000, "Port of the server, where no address is given.", low=1, high=65535)
    vllm_server_timeout: float = flag(
        240.0, "Seconds to wait for the server to come up, or to come back.", low=0, high=604800
    )
    vllm_weights_dir: str | None = flag(
        None, "Folder through which weights go to vLLM, at the same path for both; unset: in the run's folder."
    )
    vllm_group_port: int = flag(51216, "Port on which weights are sent to the server.")
    vllm_gpu_memory_utilization: float = flag(0.3, "Share of the GPU's memory for vLLM.", low=0, high=1)
    vllm_max_model_length: int | None = flag(None, "Longest prompt and completion together.", low=1)
    vllm_tensor_parallel_size: int = flag(1, "GPUs that share each of vLLM's models.", low=1)
    use_transformers_continuous_batching: bool = flag(False, "Generate with transformers' continuous batching.")
    transformers_continuous_batching_config: dict[str, Any] | None = flag(None, "Settings of that.")
    use_transformers_paged: bool = flag(False, "The older name of use_transformers_continuous_batching.")
    cache_implementation: str | None = flag(None, "Cache of transformers' generate.")
    generation_kwargs: dict[str, Any] | None = flag(None, "Further settings of generation.")
    ds3_gather_for_generation: bool = flag(True, "Gather weights that ZeRO-3 has spread, to generate.")

    @property
    def uses_vllm_server(self) -> bool:
        """Whether completions come from a server."""
        return self.use_vllm and self.vllm_mode == "server"

    @property
    def vllm_address(self) -> str:
        """Of the server, without a slash at the end."""
        if self.vllm_server_base_url is not None:
            return self.vllm_server_base_url.rstrip("/")
        # Where a server listens on all addresses of its machine, this machine is asked.
        host = "127.0.0.1" if self.vllm_server_host == "0.0.0.0" else self.vllm_server_host
        return f"http://[{host}]:{self.vllm_server_port}" if ":" in host else f"http://{host}:{self.vllm_server_port}"


@dataclass(kw_only=True)
class VLLMCorrectionFlags:
    """Correction between vLLM and trainer"""

    vllm_importance_sampling_correction: bool = flag(True, "Weigh tokens by the ratio of trainer and vLLM.")
    vllm_importance_sampling_mode: str = flag("sequence_mask", "How large weights are limited.", choices=_IS_MODES)
    vllm_importance_sampling_clip_max: float | None = flag(3.0, "Largest weight.", low=0)
    vllm_importance_sampling_clip_min: float | None = flag(None, "Smallest weight.", low=0)
    vllm_importance_sampling_cap: float | None = flag(
        None, "The older name of vllm_importance_sampling_clip_max.", low=0
    )

    @property
    def vllm_largest_weight(self) -> float | None:
        """vllm_importance_sampling_clip_max, under whichever of its names."""
        cap = self.vllm_importance_sampling_cap
        return self.vllm_importance_sampling_clip_max if cap is None else cap


def engine_problems(config: "PolicyConfig") -> Iterator[str]:
    """What is asked for and not to be had, and what does not go together."""
    if config.generation_kwargs:
        yield (
            "generation_kwargs is not available; use the flags temperature, top_p, top_k, min_p, "
            "repetition_penalty and max_completion_length"
        )
    if not config.use_vllm:
        return
    if config.load_in_4bit or config.load_in_8bit:
        name = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
        yield f"use_vllm gets whole weights, which {name} does not keep; leave out one of the two"
    for name in ("top_p", "repetition_penalty"):
        for own in (name, f"eval_{name}"):
            if getattr(config, own) == 0:
                yield f"{own} is 0, which vLLM does not take; leave it out, or give a number above 0"
    if config.uses_vllm_server:
        yield from _server_problems(config)
        return
    if config.vllm_tensor_parallel_size > 1:
        yield (
            f"vllm_tensor_parallel_size {config.vllm_tensor_parallel_size} is for a server: start it with "
            "--tensor-parallel-size, and give vllm_mode server; in the trainer's processes each vLLM has a whole model"
        )
    if config.vllm_max_model_length is not None and config.vllm_max_model_length <= config.max_completion_length:
        yield (
            f"vllm_max_model_length {config.vllm_max_model_length:,} leaves no room for a prompt before "
            f"max_completion_length {config.max_completion_length:,}; raise the one or lower the other"
        )


def _server_problems(config: "PolicyConfig") -> Iterator[str]:
    try:
        address = urlsplit(config.vllm_address)
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        is_address = False
    if not is_address or "?" in config.vllm_address or not config.vllm_address.isprintable():
        name = "vllm_server_host" if config.vllm_server_base_url is None else "vllm_server_base_url"
        yield f"{name}: {config.vllm_address!r} is no address such as http://127.0.0.1:8000"


def correction_problems(config: "GRPOConfig") -> Iterator[str]:
    """What does not go together among the flags of the correction."""
    cap, smallest = config.vllm_importance_sampling_cap, config.vllm_importance_sampling_clip_min
    if cap is not None and "vllm_importance_sampling_clip_max" in config.explicit:
        yield (
            "vllm_importance_sampling_cap and vllm_importance_sampling_clip_max are one thing under two names; give "
            "the second alone"
        )
    largest = config.vllm_largest_weight
    if smallest is not None and largest is not None and smallest > largest:
        yield (
            f"vllm_importance_sampling_clip_min {smallest:g} is above vllm_importance_sampling_clip_max {largest:g}; "
            "exchange them"
        )
