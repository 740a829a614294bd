"""A function of tensors that takes the same way every time, recorded at its first call and then run as a list of
operators.

A step of sampling on a CPU is some hundreds of small operators, between which Python goes through modules, makes views
and asks for memory. Here each operator writes into the tensor that it made when it was recorded, so that views need not
be made again; what depends on nothing that changes is not computed again; and the results are the same to the bit.

What a function may do to be recorded: anything whose operators, shapes and numbers outside of tensors do not depend on
the numbers in its inputs or on how often it has been called. A function that asks for a number, draws one, or makes
shapes from numbers is found out, and run as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])
Tensors = tuple[torch.Tensor, ...]
Result = TypeVar("Result", bound=tuple[torch.Tensor, ...])
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_ALIGNED = 64  # bytes
_CHANGES_BY_ITSELF = {
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
    torch.Tag.nondeterministic_seeded,
}


class Replay(Generic[Result]):
    """The function, faster once it has been recorded; recorded anew where the shapes of its inputs have changed.

    Args:
        function: of tensors to tensors. What else it reads must stay where it is; it may be changed in place.
        after: calls with the same shapes before it is recorded, which takes as long as some calls.
    """

    def __init__(self, function: Callable[..., Result], after: int = 0):
        self._function, self._after = function, after
        self._shapes: list[torch.Size] = []
        self._calls_alike = 0
        self._inputs: Tensors = ()
        self._outputs: Result | None = None
        self._calls: list[Call] = []
        self.refused: str | None = None  # what cannot be recorded

    def __call__(self, *inputs: torch.Tensor) -> Result:
        if self.refused is not None:
            return self._function(*inputs)
        if (shapes := [one.shape for one in inputs]) != self._shapes:
            self._shapes, self._calls_alike = shapes, 0
            self._inputs, self._outputs, self._calls = (), None, []  # their tensors are let go
        self._calls_alike += 1
        if self._calls_alike <= self._after:
            return self._function(*inputs)
        if self._outputs is None:
            return self._record(inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        for operator, args, kwargs in self._calls:
            operator(*args, **kwargs)
        return tree_map_only(torch.Tensor, torch.clone, self._outputs)

    def _record(self, inputs: Tensors) -> Result:
        held, recorder = tuple(one.clone() for one in inputs), _Recorder()
        token = _recorder.set(recorder)
        try:
            with recorder:
                outputs = self._function(*held)
        finally:
            _recorder.reset(token)
        self.refused = recorder.refused
        if self.refused is None:
            steps = _needed(recorder.steps, held)
            moved = _moved_together(steps, outputs)
            self._calls = [_call(step, moved) for step in steps]
            self._inputs, self._outputs = held, tree_map_only(torch.Tensor, moved, outputs)
        return outputs


def live(function: Function) -> Function:
    """A function whose operators differ from call to call: it is called again, within what has been recorded.

    Args:
        function: returns a tensor of the same shape at each call.
    """

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> torch.Tensor:
        recorder = _recorder.get()
        return function(*args, **kwargs) if recorder is None else recorder.call(function, args, kwargs)

    return called  # type: ignore[return-value]


class _Step(NamedTuple):
    """An operator or a live function that was called, and the tensors that came out."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[torch.Tensor]

    @property
    def is_operator(self) -> bool:
        return isinstance(self.function, torch._ops.OpOverload)

    def changed(self) -> list[Any]:
        """The arguments that are changed in place."""
        if not self.is_operator or not self.function._schema.is_mutable:
            return []
        arguments = self.function._schema.arguments
        given = dict(zip([one.name for one in arguments], self.args, strict=False)) | self.kwargs
        return [
            given[one.name] for one in arguments if one.alias_info and one.alias_info.is_write and one.name in given
        ]


class _Recorder(TorchDispatchMode):
    """Runs operators and writes them down."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: str | None = None
        self._paused = False
        # All that comes out is held until the end, so that no storage takes the place of another.
        self.steps: list[_Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._paused or self.refused:
            return result
        made = _leaves(result)
        if _CHANGES_BY_ITSELF & set(func.tags) or not all(isinstance(one, torch.Tensor) for one in made):
            self.refused, self.steps = str(func), []
        else:
            self.steps.append(_Step(func, args, kwargs, made))
        return result

    def call(
        self, function: Callable[..., torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Calls, and keeps the call in place of its operators."""
        self._paused = True
        result = function(*args, **kwargs).contiguous()
        self._paused = False
        if not self.refused:
            self.steps.append(_Step(function, args, kwargs, [result]))
        return result


def _needed(steps: Sequence[_Step], inputs: Tensors) -> list[_Step]:
    """What has to be run for other numbers in the inputs."""
    changing = _storages((inputs, [step.changed() for step in steps]))
    needed = []
    for step in steps:
        read, written = _storages((step.args, step.kwargs)), _storages(step.made)
        is_view = step.is_operator and written <= read
        if not step.is_operator or step.changed() or (not is_view and (read | written) & changing):
            needed.append(step)
            changing |= written
    return needed


def _moved_together(steps: Sequence[_Step], outputs: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """A new place for what the steps make, in one stretch of memory where a result takes the place of one that is not
    wanted any more: so it stays in the caches, and memory is not much more than without a recording.

    Returns:
        A tensor → the one to use in its place.
    """
    last = {storage: i for i, step in enumerate(steps) for storage in _storages((step.args, step.kwargs, step.made))}
    last |= dict.fromkeys(_storages(outputs), len(steps))
    places: dict[int, int] = {}  # of a storage, in bytes
    taken: list[tuple[int, int, int]] = []  # first byte, end, the step that is the last to want it
    size = 0
    for i, step in enumerate(steps):
        taken = [one for one in taken if one[2] >= i]
        for made in [] if step.changed() else step.made:
            (storage,), length = _storages(made), -(-made.untyped_storage().nbytes() // _ALIGNED) * _ALIGNED
            if storage in places:
                continue
            start = 0
            for first, end, _ in sorted(taken):
                if first - start >= length:
                    break
                start = max(start, end)
            places[storage] = start
            taken.append((start, start + length, last[storage]))
            size = max(size, start + length)
    memory = torch.empty(size, dtype=torch.uint8).untyped_storage()

    @functools.cache
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        (storage,) = _storages(tensor)
        if storage not in places:
            return tensor
        offset = places[storage] // tensor.element_size() + tensor.storage_offset()
        return torch.empty(0, dtype=tensor.dtype).set_(memory, offset, tensor.size(), tensor.stride())

    return moved


def _call(step: _Step, moved: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    """What runs a step, its results written into the tensors that are there for them."""
    function, args, kwargs, made = tree_map_only(torch.Tensor, moved, tuple(step))
    if step.changed():
        return function, args, kwargs
    variant = _out_variant(function) if step.is_operator else None
    if variant is not None and len(variant[1]) == len(made):
        return variant[0], args, kwargs | dict(zip(variant[1], made, strict=True))

    def copied(*args: Any, **kwargs: Any) -> None:
        for held, one in zip(made, _leaves(function(*args, **kwargs)), strict=True):
            held.copy_(one)

    return copied, args, kwargs


@functools.cache
def _out_variant(func: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The overload of an operator that takes the same arguments and tensors to write into, and their names."""
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        outs = [argument for argument in other._schema.arguments if argument.is_out]
        given = [(one.name, str(one.type)) for one in other._schema.arguments if not one.is_out]
        if given == wanted and len(outs) == len(func._schema.returns):
            return other, tuple(one.name for one in outs)
    return None


def _storages(tree: Any) -> set[int]:
    """Of all tensors in it; one whose layout is its kernel's own is a storage of its own."""
    tensors = [one for one in _leaves(tree) if isinstance(one, torch.Tensor)]
    return {id(one) if one.is_mkldnn else one.untyped_storage()._cdata for one in tensors}


def _leaves(tree: Any) -> list[Any]:
    """What stands in tuples, lists and dictionaries: torch's own function for that takes most of a recording's time."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for one in tree for leaf in _leaves(one)] if isinstance(tree, tuple | list) else [tree]


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
