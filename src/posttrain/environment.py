"""`posttrain env`: what this machine has and what of posttrain works on it, as Markdown for a bug report.

Nothing that names a person or a machine is written, no token, and no package that is missing or broken stops it.
"""

import getpass
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import UserError, install
from posttrain.machine import cpu_model, has_bf16, machine_memory, num_cores

USAGE = "posttrain env"
_NEEDED = ("posttrain", "torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "safetensors", "dvc")
_OPTIONAL = (
    *("deepspeed", "bitsandbytes", "vllm", "flash-attn", "liger-kernel", "tensorboard", "wandb", "trackio", "mlflow"),
    "mlflow-skinny",
)
# Variables whose values say how a run behaves. Of others with these beginnings only that they are set is told.
_TOLD = re.compile(
    r"(HF_(HOME|ENDPOINT|HUB_OFFLINE|HUB_CACHE|DATASETS_OFFLINE|HUB_DISABLE_\w+)|TRANSFORMERS_OFFLINE|HUGGINGFACE_HUB_CACHE"
    r"|(CUDA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_HOME|CUDA_LAUNCH_BLOCKING|CUBLAS_WORKSPACE_CONFIG|(OMP|MKL)_NUM_THREADS"
    r"|OMP_PROC_BIND|TOKENIZERS_PARALLELISM|PYTORCH_\w*ALLOC_CONF|NCCL_\w+|TORCH_\w+|TORCHINDUCTOR_\w+|ACCELERATE_\w+"
    r"|POSTTRAIN_\w+|RANK|LOCAL_RANK|WORLD_SIZE)"
)
_NAMED = re.compile(
    r"(HF|HUGGINGFACE|TRANSFORMERS|CUDA|HIP|ROCR|OMP|MKL|PYTORCH|WANDB|TRACKIO|MLFLOW|VLLM|DS|OPENAI|SLURM)_\w+"
    r"|(https?|all|no)_proxy",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_GIB = 2**30


def run(words: Sequence[str]) -> int:
    """Print the report.

    Args:
        words: behind `posttrain env`; none are wanted, but for --help.

    Raises:
        UserError: there are other words.
    """
    if words and words[0] in ("-h", "--help"):
        print(f"Usage: {USAGE}\n\nPrints versions, devices and what works here, as Markdown for a bug report.")
        return 0
    if words:
        raise UserError(f"{words[0]}: `posttrain env` takes no words; usage: {USAGE}")
    print(report())
    return 0


def report() -> str:
    """The report, in Markdown."""
    torch, trouble = _import_torch()
    sections = {
        "Machine": _machine(torch),
        "Packages": _packages(torch, trouble),
        "What works here": _features(torch),
        "Environment variables": _variables(),
    }
    tables = [(title, list(_as_far_as_it_goes(rows))) for title, rows in sections.items()]
    return "\n\n".join(f"#### {title}\n\n{_table(rows)}" for title, rows in tables if rows)


def _as_far_as_it_goes(rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Rows up to the one that a broken driver or package does not let be made, and in its place what is wrong."""
    try:
        yield from rows
    except Exception as error:  # whatever the broken thing raises
        yield "broken", _without_names(f"{type(error).__name__}: {error}".splitlines()[0])


def memory(torch: Any) -> tuple[int, str]:
    """Memory that a model can be trained in, and whose it is.

    Args:
        torch: the package, or None.

    Returns:
        bytes of the first GPU, or of this machine where there is none; in words, whose.
    """
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), "the GPU"
    return machine_memory(), "this machine"


def _import_torch() -> tuple[Any, str]:
    """torch, or None and what is wrong with it."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return None, _without_names(f"{type(error).__name__}: {error}".splitlines()[0])
    return torch, ""


def _machine(torch: Any) -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "CPU", f"{cpu_model()}, {num_cores()} of {os.cpu_count()} cores"
    yield "memory", _gib(machine_memory())
    found = False
    for index in range(torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0):
        about, found = torch.cuda.get_device_properties(index), True
        kind = f"capability {about.major}.{about.minor}" if not torch.version.hip else torch.version.hip
        yield f"GPU {index}", f"{about.name}, {_gib(about.total_memory)}, {kind}"
    if not found:
        accelerator = torch is not None and torch.accelerator.is_available()
        yield "GPU", f"{torch.accelerator.current_accelerator()}" if accelerator else "none"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def _packages(torch: Any, trouble: str) -> Iterator[tuple[str, str]]:
    for name in (*_NEEDED, *_OPTIONAL):
        text = _version(name)
        if name == "torch" and torch is not None:
            build = torch.version
            text += f", CUDA {build.cuda}" if build.cuda else f", ROCm {build.hip}" if build.hip else ", for CPUs"
        elif name == "torch" and trouble:
            text += f", cannot be imported: {trouble}"
        if text or name in _NEEDED:
            yield name, text or "not installed"
    absent = [name for name in _OPTIONAL if not _version(name)]
    if absent:
        yield "not installed", ", ".join(absent)


def _version(name: str) -> str:
    """Of an installed package, without importing it; empty where there is none."""
    try:
        return importlib.metadata.version(name) or "without a version"
    except importlib.metadata.PackageNotFoundError:
        return ""
    except Exception as error:  # half of an installation
        return f"broken: {type(error).__name__}"


def _features(torch: Any) -> Iterator[tuple[str, str]]:
    if torch is None:
        yield "training", "no: torch cannot be imported"
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        yield "bf16", _yes(has_bf16(torch), "the GPU has no bf16 units")
        yield "fp16", "yes"
        capable = torch.cuda.get_device_capability()[0] >= 8 or bool(torch.version.hip)
        varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
        reason = "needs capability 8.0" if varlen else "needs torch 2.10"
        yield "variable-length attention", _yes(capable and varlen, f"{reason}; scaled_dot_product_attention serves")
    else:
        yield "bf16", _yes(torch.ops.mkldnn._is_mkldnn_bf16_supported(), "this CPU has no bf16 instructions")
        yield "fp16", "no: needs a GPU"
        yield "variable-length attention", "no: needs a GPU; scaled_dot_product_attention serves"
    quantises = on_gpu and bool(_version("bitsandbytes"))
    yield (
        "4 and 8 bits (QLoRA)",
        _yes(
            quantises,
            f"needs bitsandbytes: {install('quantization')}" if on_gpu else "needs a GPU and bitsandbytes",
        ),
    )
    yield "several processes", _several_processes(torch, on_gpu)
    yield (
        "DeepSpeed (zero1 to zero3)",
        _yes(bool(_version("deepspeed")), f"needs deepspeed: {install('deepspeed')}"),
    )
    yield "torch.compile", _yes(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"), "no C compiler")
    yield "vLLM", _yes(bool(_version("vllm")), "not installed")


def _several_processes(torch: Any, on_gpu: bool) -> str:
    distributed = torch.distributed
    if not distributed.is_available():
        return "no: torch was built without torch.distributed"
    backends = [name for name in ("nccl", "gloo") if getattr(distributed, f"is_{name}_available")()]
    on_cpu = f"; {num_cores()} cores" if not on_gpu else f"; {torch.cuda.device_count()} GPUs"
    return f"yes: {', '.join(backends)}{on_cpu}" if backends else "no: neither NCCL nor Gloo"


def _yes(works: Any, otherwise: str) -> str:
    return "yes" if works else f"no: {otherwise}"


def _variables() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if _TOLD.fullmatch(name) and not _SECRET.search(name):
            yield name, _without_names(_without_password(value))
        elif _NAMED.fullmatch(name) or _TOLD.fullmatch(name):
            yield name, "set" if value else "set to nothing"


def _without_password(value: str) -> str:
    parts = urlsplit(value) if "://" in value else None
    return value.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if parts and "@" in parts.netloc else value


def _without_names(text: str) -> str:
    """A text without home folder, user name and host name."""
    try:
        home, user = str(Path.home()), getpass.getuser()
    except (KeyError, OSError, RuntimeError):  # no such user in this container
        home, user = os.environ.get("HOME", ""), os.environ.get("USER", "")
    text = text.replace(home, "~") if len(home) > 1 else text
    for name, stand_in in ((user, "USER"), (platform.node(), "HOST")):
        if name:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stand_in, text)
    return text


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    lines = [f"| {'':<{widths[0]}} | {'':<{widths[1]}} |", f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|"]
    return "\n".join([*lines, *(f"| {name:<{widths[0]}} | {value:<{widths[1]}} |" for name, value in cells)])
