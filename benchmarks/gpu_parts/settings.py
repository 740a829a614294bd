"""What is measured, in two sizes: that of a GPU, and one that a CPU runs in seconds, to see whether the code runs."""

from __future__ import annotations

from dataclasses import dataclass

# Tensor-core peaks of the makers' data sheets, dense (those with sparsity are twice as high), of products of bfloat16
# with sums in float32; and bytes a second of memory. By a part of the name that the driver tells; the first to fit.
PEAKS: dict[str, tuple[float, float]] = {
    "gh200": (989e12, 4.0e12),
    "h200": (989e12, 4.8e12),
    "h100 pcie": (756e12, 2.0e12),
    "h100 nvl": (835e12, 3.9e12),
    "h100": (989e12, 3.35e12),
    "b200": (2250e12, 8.0e12),
    "a100": (312e12, 2.0e12),
    "l40s": (362e12, 0.86e12),
    "4090": (165e12, 1.01e12),
}


def peaks_of(device: str) -> tuple[float, float] | None:
    """Operations and bytes a second that a device can do at most; None where it is not known.

    Args:
        device: its name.
    """
    return next((peaks for name, peaks in PEAKS.items() if name in device.lower()), None)


@dataclass(frozen=True)
class Setting:
    """Sizes of everything that is measured.

    Args:
        hidden_size, intermediate_size, num_layers, num_heads, num_key_heads, vocabulary: of the model, a Qwen2 whose
            embeddings are its head.
        row: tokens of a packed row of SFT.
        documents: median and shape of the log-normal lengths of its documents.
        rows: packed rows of an optimizer step.
        prompt, completion: median and shape of the log-normal lengths of pairs; cut at `longest`.
        longest: tokens of a prompt, or of a completion.
        pairs: of an optimizer step.
        prompts, group, new_tokens: of the rollouts.
        step_prompts, step_new_tokens: prompts of a step of GRPO and RLOO, and tokens of their completions.
        slice_rows, slice_tokens: of what transformers' generate is given.
        steps: timed ones of a run, at most.
        skip: steps before them.
    """

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_layers: int = 24
    num_heads: int = 14
    num_key_heads: int = 2
    vocabulary: int = 151_936
    row: int = 8192
    documents: tuple[float, float] = (600.0, 0.9)
    rows: int = 4
    prompt: tuple[float, float] = (120.0, 0.9)
    completion: tuple[float, float] = (240.0, 0.7)
    longest: int = 1024
    pairs: int = 32
    prompts: int = 64
    group: int = 8
    new_tokens: int = 512
    step_prompts: int = 8
    step_new_tokens: int = 256
    slice_rows: int = 64
    slice_tokens: int = 64
    steps: int = 12
    skip: int = 3

    @property
    def shape(self) -> dict[str, int]:
        """Arguments of a Qwen2Config."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": max(self.row, 2 * self.longest),
        }

    @property
    def num_parameters(self) -> int:
        """N of the model, its embeddings, which are the head too, counted once."""
        width = self.hidden_size // self.num_heads
        query, key = self.num_heads * width, self.num_key_heads * width
        attention = 2 * self.hidden_size * query + 2 * self.hidden_size * key + query + 2 * key  # Qwen2: q, k, v biases
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_layers * layer + self.hidden_size + self.vocabulary * self.hidden_size


FULL = Setting()
TINY = Setting(
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_key_heads=2,
    vocabulary=400,
    row=64,
    documents=(20.0, 0.5),
    rows=2,
    prompt=(8.0, 0.5),
    completion=(10.0, 0.5),
    longest=24,
    pairs=4,
    prompts=3,
    group=2,
    new_tokens=6,
    step_prompts=2,
    step_new_tokens=6,
    slice_rows=2,
    slice_tokens=4,
    steps=2,
    skip=1,
)


def step_operations(
    num_parameters: int, lengths: list[int], num_layers: int, width: int, frozen: bool = False
) -> float:
    """Operations of a forward and backward pass over documents, the way in which MFU is counted (PaLM, arXiv
    2204.02311, appendix B), with causal attention at half of the square: 6 N a token, and of each document and layer
    the two products of attention, forward 2 · (2 · L²/2 · width), three times that with the backward pass:

        6 · N · Σ L + 6 · layers · width · Σ L²

    What is computed again in the backward pass is not counted. Frozen weights, as under LoRA, have no gradient of their
    own: 4 N in place of 6 N; the adapter's few are left out.

    Args:
        num_parameters: N.
        lengths: L, tokens of each document.
        num_layers: of the model.
        width: heads · head size.
        frozen: whether the weights have no gradient.
    """
    squares = float(sum(length * length for length in lengths))
    return (4.0 if frozen else 6.0) * num_parameters * sum(lengths) + 6.0 * num_layers * width * squares


def token_bytes(setting: Setting, rows: int, held: float) -> float:
    """Bytes that one step of sampling has to read in bfloat16: every weight once, and the keys and values of all rows.

    Args:
        setting: of the model.
        rows: completions that go on.
        held: tokens that each of them has before it, on average; those of prompts that rows share are counted a row.
    """
    key = setting.num_key_heads * setting.hidden_size // setting.num_heads
    return 2.0 * setting.num_parameters + 2.0 * 2.0 * setting.num_layers * key * rows * held
