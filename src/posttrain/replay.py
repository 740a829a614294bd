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
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])
Tensors = tuple[torch.Tensor, ...]
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_CHANGES_BY_ITSELF = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded}


class Replay:
    """The function, faster from its second call on; recorded anew where the shapes of its inputs have changed.

    Args:
        function: of tensors to tensors. What else it reads must stay where it is; it may be changed in place.
    """

    def __init__(self, function: Callable[..., Tensors]):
        self._function = function
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()
        self._calls: list[Call] = []
        self.refused: str | None = None  # what cannot be recorded

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        if self.refused is not None:
            return self._function(*inputs)
        if [one.shape for one in inputs] != [one.shape for one in self._inputs]:
            self._record(inputs)
        else:
            for held, given in zip(self._inputs, inputs, strict=True):
                held.copy_(given)
            for operator, args, kwargs in self._calls:
                operator(*args, **kwargs)
        return tuple(one.clone() for one in self._outputs)

    def _record(self, inputs: Tensors) -> None:
        self._inputs, self._calls = (), []  # before others are made: their tensors are let go
        held, recorder = tuple(one.clone() for one in inputs), _Recorder()
        token = _recorder.set(recorder)
        try:
            with recorder:
                self._outputs = self._function(*held)
        finally:
            _recorder.reset(token)
        self.refused = recorder.refused
        self._inputs, self._calls = held, recorder.calls(held)


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


class _Recorder(TorchDispatchMode):
    """Runs operators and writes them down."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: str | None = None
        self._paused = False
        # Operators in their order, with their arguments and what came out. All of it is held until the end, so that no
        # storage takes the place of another.
        self._seen: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._paused or self.refused:
            return result
        made = tree_leaves(result)
        if _CHANGES_BY_ITSELF & set(func.tags) or not all(isinstance(one, torch.Tensor) for one in made):
            self.refused, self._seen = str(func), []
        else:
            self._seen.append((func, args, kwargs, made))
        return result

    def call(self, function: Callable[..., torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Calls, and keeps the call in place of its operators."""
        self._paused = True
        result = function(*args, **kwargs).contiguous()
        self._paused = False
        if not self.refused:
            self._seen.append((_Live(function), args, kwargs, [result]))
        return result

    def calls(self, inputs: Tensors) -> list[Call]:
        """What has to be called for other numbers in the inputs."""
        varying = _storages(inputs)
        for func, args, kwargs, _ in self._seen:
            if not isinstance(func, _Live):
                varying |= _storages(_written(func, args, kwargs))
        calls: list[Call] = []
        for func, args, kwargs, made in self._seen:
            read, written = _storages((args, kwargs)), _storages(made)
            if isinstance(func, _Live):
                calls.append((func.into(made[0]), args, kwargs))
            elif func._schema.is_mutable:
                calls.append((func, args, kwargs))
            elif written <= read or not (read | written) & varying:
                continue  # views, and what stays as it is
            else:
                calls.append(_writing(func, args, kwargs, made))
            varying |= written
        return calls


class _Live:
    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function = function

    def into(self, held: torch.Tensor) -> Callable[..., Any]:
        return lambda *args, **kwargs: held.copy_(self.function(*args, **kwargs))


def _writing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Sequence[torch.Tensor]) -> Call:
    """The call of an operator that writes into the tensors that it made before."""
    variant = _out_variant(func)
    if variant is not None and len(variant[1]) == len(made):
        return variant[0], args, kwargs | dict(zip(variant[1], made, strict=True))
    if len(made) == 1:
        return (lambda *args, **kwargs: made[0].copy_(func(*args, **kwargs))), args, kwargs

    def copied(*args: Any, **kwargs: Any) -> None:
        for held, one in zip(made, func(*args, **kwargs), strict=True):
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


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator changes in place."""
    names = [one.name for one in func._schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    given = dict(zip([one.name for one in func._schema.arguments], args, strict=False)) | kwargs
    return [given.get(name) for name in names]


def _storages(tree: Any) -> set[int]:
    """Of all tensors in it; one whose layout is its kernel's own is a storage of its own."""
    tensors = [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]
    return {id(one) if one.is_mkldnn else one.untyped_storage()._cdata for one in tensors}


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
