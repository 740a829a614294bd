"""Steps of sampling as captured graphs, with a stand-in for CUDA's: what was recorded in a capture runs again, operator
by operator, on the tensors of the capture, and Python does not. So what a step takes from Python would stay as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_rollout_engine import assert_same_tokens, parts, sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain import decoding
from posttrain.rollout import engine as engine_module
from posttrain.rollout.captured import Captured
from posttrain.rollout.engine import Completions

_NOT_PERMITTED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Graph(TorchDispatchMode):
    """Records operators; refuses those for which a GPU would have to be waited for. A capture changes nothing: what has
    been written in place is put back."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _NOT_PERMITTED & set(func.tags):
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        if func._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result

    def put_back(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            for held, new in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                if held.data_ptr() != new.data_ptr():  # neither a view nor in place
                    held.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Those that have been captured, on a CPU."""
    found: list[Graph] = []

    def capture(self: Captured, inputs: Any) -> tuple[Callable[[], Any], Any]:
        graph = Graph()
        with graph:
            outputs = self._step(*inputs)
        graph.put_back()
        found.append(graph)
        return graph.replay, outputs

    monkeypatch.setattr(Captured, "_capture", capture)
    monkeypatch.setattr(engine_module, "_CAPTURING", {"cpu"})
    monkeypatch.setattr(decoding, "COLUMNS", 8)
    return found


def both(model: Any, engine: Any, **changes: Any) -> tuple[Completions, Completions]:
    """With captured steps, and without."""
    captured = sample(model, engine, **changes)
    engine.captures = False
    return captured, sample(model, engine, **changes)


@pytest.mark.parametrize(
    "family", ["qwen2", "llama", "gemma3, sliding window", "gpt2, learned positions", "phi3, fused projections"]
)
def test_captured_steps_draw_the_same(family: str, graphs: list[Graph]) -> None:
    model, _, engine = parts(family)
    captured, plain = both(model, engine, temperature=1.2)
    assert_same_tokens(captured, plain)
    told = zip(captured.logprobs, plain.logprobs, strict=True)
    assert (
        max(float(np.abs(a - b).max()) for a, b in told)
        < 1e-6 * max(float(np.abs(b).max()) for b in plain.logprobs) + 1e-6
    )
    assert len(graphs) > 2  # one for each number of rows and of columns


def test_truncation_and_penalty_are_captured_too(graphs: list[Graph]) -> None:
    model, _, engine = parts("qwen3")
    captured, plain = both(model, engine, temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    assert_same_tokens(captured, plain)
    np.testing.assert_allclose(
        np.concatenate(captured.policy_logprobs), np.concatenate(plain.policy_logprobs), atol=1e-5
    )
    assert graphs


def test_rows_that_are_looked_for_now_and_then(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.rollout.record._CHECK_EVERY", {"cpu": 16})
    model, _, engine = parts("qwen2")
    assert_same_tokens(*both(model, engine))
    assert 1 < len(graphs) < 5


def test_a_model_that_cannot_be_captured_samples_without(graphs: list[Graph], caplog: pytest.LogCaptureFixture) -> None:
    model, _, engine = parts("qwen2")
    assert engine.captures and graphs  # as it was tried at loading
    graphs.clear()
    attend = model.model.layers[1].self_attn.forward

    def waits(*args: Any, **kwargs: Any) -> Any:
        output = attend(*args, **kwargs)
        assert output[0].sum().item() is not None
        return output

    model.model.layers[1].self_attn.forward = waits
    with caplog.at_level(logging.WARNING):
        captured, plain = both(model, engine)
    assert_same_tokens(captured, plain)
    assert not graphs
    told = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert told == ["Sampling goes on without CUDA graphs: operation not permitted when stream is capturing"]


def test_what_a_trial_refuses_or_finds_wrong_is_not_captured(
    graphs: list[Graph], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "replay", lambda self: None)  # replays that give the first numbers again
    model, _, engine = parts("qwen2")
    assert engine.packed and not engine.captures
    assert "launched kernel by kernel" in caplog.text
    graphs.clear()
    sample(model, engine)
    assert not graphs


def test_a_model_that_comes_onto_the_gpu_later_is_captured_there(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under FSDP and DeepSpeed, where it is tried on the CPU."""
    monkeypatch.setattr(engine_module, "_CAPTURING", set())
    model, _, engine = parts("qwen2")
    assert not graphs
    monkeypatch.setattr(engine_module, "_CAPTURING", {"cpu"})
    assert_same_tokens(*both(model, engine))
    assert graphs


def test_what_waits_at_the_first_call_is_not_captured(graphs: list[Graph]) -> None:
    calls = []

    def step(one: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(len(one))
        if len(calls) == 1:
            raise RuntimeError("called a synchronizing CUDA operation")
        return (one * 2,)

    run = Captured(step, lambda: 1, is_first=True)
    assert [run(torch.ones(1))[0].item() for _ in range(3)] == [2.0] * 3
    assert run.refused and not graphs and len(calls) == 4


def test_the_first_call_runs_the_second_is_captured_others_are_replayed(graphs: list[Graph]) -> None:
    calls = []

    def step(one: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(len(one))
        return (one * 2,)

    width = 1
    run = Captured(step, lambda: width)
    results = [run(torch.full((2,), float(i))) for i in range(4)]
    assert [one[0].tolist() for one in results] == [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [6.0, 6.0]]
    assert calls == [2, 2] and len(graphs) == 1
    assert run(torch.ones(3))[0].tolist() == [2.0, 2.0, 2.0] and calls == [2, 2, 3]
    run(torch.ones(3))
    width = 2
    assert run(torch.ones(3))[0].tolist() == [2.0, 2.0, 2.0] and calls == [2, 2, 3, 3, 3] and len(graphs) == 2
