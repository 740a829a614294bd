"""Finding a reward function by its name and calling it: what happens in a worker, or in this process without any."""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.errors import UserError
from posttrain.rollout.rewards.functions import FUNCTIONS

ALWAYS_GIVEN = ("prompts", "completions", "completion_ids")
# What ends a call and not the process. KeyboardInterrupt is the user's.
ENDS_CALL = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
_LONGEST = 500  # characters of what an exception says


@dataclass(frozen=True)
class FunctionName:
    """How a function is named; it can travel to another process, where the function itself often cannot.

    Args:
        text: a key of FUNCTIONS, `package.module.function` or `path/to/file.py:function`.
        options: for a built-in function that is made from them.
    """

    text: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass
class Reply:
    """What came of one call.

    Args:
        values: a number or None for each row; empty where the call failed.
        bad: rows whose value was no usable number, and what it was.
        error: the exception that ended the call.
        mistake: what is wrong with the function itself, whatever the rows.
    """

    values: list[float | None] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    error: str = ""
    mistake: str = ""


def load_function(name: FunctionName) -> Callable[..., Any]:
    """Import a reward function.

    Raises:
        UserError: there is no such file, module or function, it cannot be imported, or it is not callable.
    """
    if name.text in FUNCTIONS:
        built_in = FUNCTIONS[name.text].function
        return built_in(**name.options) if name.options else built_in
    module, _, attribute = name.text.rpartition(":" if ":" in name.text else ".")
    try:
        loaded = _load_file(Path(module).expanduser()) if ":" in name.text else _import(module)
        function: Any = getattr(loaded, attribute, None)  # which runs code, too, where a module has __getattr__
    except ENDS_CALL as error:
        raise UserError(
            f"reward_funcs: {name.text} cannot be imported: {describe(error)}", "rewards.md#your-own"
        ) from error
    if function is None:
        from posttrain.config import suggestion  # brings the flags of all methods, which a worker seldom needs

        known = [known for known, value in vars(loaded).items() if callable(value)]
        raise UserError(f"reward_funcs: {module} has no function {attribute!r}{suggestion(attribute, known)}")
    if not callable(function) or inspect.isclass(function):
        raise UserError(f"reward_funcs: {name.text} is {type(function).__name__}, not a function")
    try:
        parameters = _parameters(function)
    except (ValueError, TypeError):
        raise UserError(f"reward_funcs: {name.text} does not tell its arguments; wrap it in a function") from None
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(
                f"reward_funcs: {name.text} takes {parameter.name} by its place alone, and arguments come by name; "
                "take the / out"
            )
    return function


def needed_columns(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function must be given and that only a column of the data can be."""
    return [
        parameter.name
        for parameter in _parameters(function)
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in ALWAYS_GIVEN
    ]


def call_function(function: Callable[..., Any], arguments: Mapping[str, Any], runner: asyncio.Runner) -> Reply:
    """Call a reward function with those of the arguments that it takes.

    Args:
        function: sync or async.
        arguments: lists with an entry a row.
        runner: the event loop for async functions; the same one at every call, so that their connections can live on.

    Returns:
        What came of it; this never raises what the function raises.
    """
    count = len(arguments["completions"])
    missing = [name for name in needed_columns(function) if name not in arguments]
    if missing:
        return Reply(mistake=f"it needs {missing[0]!r}, and the data has no such column (it has {_names(arguments)})")
    kinds = {parameter.kind for parameter in _parameters(function)}
    taken = {parameter.name for parameter in _parameters(function)}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    given = {name: value for name, value in arguments.items() if takes_all or name in taken}
    try:
        output = function(**given)
        if inspect.isawaitable(output):
            output = runner.run(_wait(output))
        return _read_output(output, count)
    except ENDS_CALL as error:
        return Reply(error=describe(error))


def call_rows(function: Callable[..., Any], arguments: Mapping[str, Any], runner: asyncio.Runner) -> Iterator[Reply]:
    """Call a reward function with one row at a time."""
    for row in range(len(arguments["completions"])):
        yield call_function(function, {name: [value[row]] for name, value in arguments.items()}, runner)


def describe(error: BaseException) -> str:
    """An exception in a line: its type, what it says, and where in whose file it was raised."""
    frames = list(traceback.walk_tb(error.__traceback__))[-1:]
    place = f" ({frames[0][0].f_code.co_filename}:{frames[0][1]})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
        return f"{type(error).__name__}: {error.msg}{place}"
    try:
        text = str(error).strip()
    except Exception:  # an exception's own text is code of the user, too
        text = ""
    # In one line that a terminal can show, whatever model text is quoted in it.
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST].partition("\n")[0])
    return f"{type(error).__name__}{': ' if line else ''}{line}{place}"


def _names(arguments: Mapping[str, Any]) -> str:
    return ", ".join(sorted(set(arguments) - set(ALWAYS_GIVEN))) or "none but the prompt"


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


async def _wait(output: Any) -> Any:
    return await output


def _import(module: str) -> ModuleType:
    """Import a module by its dotted name; those in the current folder can be found, as by `python -m`."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(module)


def _load_file(path: Path) -> ModuleType:
    """Import a file as a module of its own; it may import its neighbours, as a script may."""
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _read_output(output: Any, count: int) -> Reply:
    # A set has an entry for each, too, in an order of its own.
    is_other = isinstance(output, str | bytes | bytearray | memoryview | Mapping | Set)
    is_sized = (
        hasattr(output, "__len__") and getattr(output, "ndim", None) != 0
    )  # an array of no dimension only seems so
    if is_other or not is_sized or not hasattr(output, "__iter__"):
        return Reply(mistake=f"it returned {type(output).__name__}, not a list with a number for each completion")
    if len(output) != count:
        return Reply(mistake=f"it returned {len(output)} rewards for {count} completions; return one for each")
    reply = Reply()
    for row, value in enumerate(itertools.islice(output, count)):
        try:
            reply.values.append(None if value is None else _read_number(value))
        except Exception:  # a number's conversion to float is code of whoever made it
            reply.values.append(None)
            reply.bad[row] = f"it returned {_shown(value)}; return a number, or None for no opinion"
    if len(reply.values) != count:
        return Reply(mistake=f"it returned {type(output).__name__} of {count} entries that gives {len(reply.values)}")
    return reply


def _read_number(value: Any) -> float:
    """A number of Python, numpy or torch as a float."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError("text is no number, though float() would read some")
    return float(value)


def _shown(value: Any) -> str:
    """A value in a few words, whatever its own text does."""
    try:
        text = reprlib.repr(value)  # of 2 million entries it looks at a few
    except Exception:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
