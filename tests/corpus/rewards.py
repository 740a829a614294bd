"""Reward functions that misbehave, each a file of its own with a function `score`, and what becomes of three rows."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A file of a reward function, called with the completions a, bad and c.

    Args:
        code: the file.
        values: what the three rows get.
        failures: how many are counted.
        says: what is logged of them.
        mistake: what the message says where the function is at fault, whatever the rows.
        in_worker: it would end or stop the process that it runs in.
        is_slow: it runs into the limit of time.
    """

    code: str
    values: list[float | None] = field(default_factory=lambda: [1.0, None, 1.0])
    failures: int = 1
    says: str = ""
    mistake: str = ""
    in_worker: bool = False
    is_slow: bool = False


def where_bad(action: str, says: str = "", **options: bool) -> Case:
    """Does something with a batch that holds the bad row, and is fine with the others."""
    head = f"def score(completions, **columns):\n    if 'bad' in completions:\n        {action}\n"
    code = head + "    return [1.0] * len(completions)"
    return Case(code, says=says, **options)  # type: ignore[arg-type]


def returns(value: str, head: str = "", **outcome: object) -> Case:
    """Returns something; N stands for the number of completions."""
    return Case(f"{head}\ndef score(completions, **columns):\n    N = len(completions)\n    return {value}", **outcome)  # type: ignore[arg-type]


def fine(action: str) -> Case:
    """Does something to the process, and scores all the same; twice, since the next batch meets what it left."""
    code = f"def score(completions, **columns):\n    N = len(completions)\n    {action}\n    return [1.0] * N"
    return Case(code, [1.0] * 3, failures=0)


def no_list(value: str, kind: str, head: str = "") -> Case:
    return returns(value, head, mistake=f"it returned {kind}, not a list")


def bad_value(value: str, says: str, head: str = "") -> Case:
    return returns(f"[1.0 if one != 'bad' else {value} for one in completions]", head, says=says)


FUNCTIONS: dict[str, Case] = {
    # Exceptions and ends.
    "raises": where_bad("raise ValueError('no')", "ValueError: no"),
    "raises for every row": Case("def score(completions):\n    1 / 0", [None] * 3, 3, "ZeroDivisionError"),
    "an exception without a text": where_bad("raise KeyError", "KeyError"),
    "an exception whose text raises": where_bad(
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "Odd"
    ),
    "an exception of 10 MB and control characters": where_bad(
        "raise ValueError('\\x1b[2J\\x00' + 'x' * 10**7)", "ValueError:  [2J xxx"
    ),
    "a group of exceptions": where_bad("raise ExceptionGroup('two', [ValueError(), KeyError()])", "ExceptionGroup"),
    "sys.exit(0)": where_bad("import sys; sys.exit(0)", "SystemExit: 0"),
    "exit()": where_bad("exit()", "SystemExit"),
    "raises GeneratorExit": where_bad("raise GeneratorExit", "GeneratorExit"),
    "raises KeyboardInterrupt": where_bad("raise KeyboardInterrupt", "its process ended", in_worker=True),
    "os._exit(0)": where_bad("import os; os._exit(0)", "its process ended with exit code 0", in_worker=True),
    "kills itself": where_bad("import os; os.kill(os.getpid(), 9)", "its process ended with signal 9", in_worker=True),
    "crashes in C": where_bad("import ctypes; ctypes.string_at(0)", "its process ended with signal 11", in_worker=True),
    "recursion without end": where_bad("f = lambda: f(); f()", "RecursionError"),
    "more memory than there is": where_bad("bytearray(1 << 62)", "MemoryError"),
    "cancels itself": Case(
        "import asyncio\nasync def score(completions):\n    if 'bad' in completions:\n"
        "        raise asyncio.CancelledError\n    return [1.0] * len(completions)",
        says="CancelledError",
    ),
    "reads the keyboard": where_bad("input()", "EOFError", in_worker=True),
    # Never comes back.
    "sleeps": where_bad("import time; time.sleep(60)", "took longer than", in_worker=True, is_slow=True),
    "holds the interpreter": where_bad("sum(range(10**12))", "took longer than", in_worker=True, is_slow=True),
    "ignores signals and sleeps": where_bad(
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(60)",
        "took longer than",
        in_worker=True,
        is_slow=True,
    ),
    "stops itself": where_bad(
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "took longer than", in_worker=True, is_slow=True
    ),
    "waits for what never comes": Case(
        "import asyncio\nasync def score(completions):\n    if 'bad' in completions:\n"
        "        await asyncio.Event().wait()\n    return [1.0] * len(completions)",
        says="took longer than",
        in_worker=True,
        is_slow=True,
    ),
    # Answers that are no list of numbers.
    "too few": returns("[0.0] * (N - 1)", mistake="returned 2 rewards for 3 completions"),
    "too many": returns("[0.0] * 10**6", mistake="returned 1000000 rewards for 3 completions"),
    "none at all": returns("[]", mistake="returned 0 rewards for 3 completions"),
    "None": no_list("None", "NoneType"),
    "a number": no_list("1.0", "float"),
    "text": no_list("'111'", "str"),
    "bytes": no_list("b'111'", "bytes"),
    "a dict": no_list("{0: 1.0, 1: 1.0, 2: 1.0}", "dict"),
    "a set, in an order of its own": no_list("{3.0, 1.0, 2.0}", "set"),
    "a generator": no_list("(1.0 for _ in completions)", "generator"),
    "an array without a dimension": no_list("np.array(1.0)", "ndarray", "import numpy as np"),
    "an async generator": Case(
        "async def score(completions):\n    yield 1.0", mistake="it returned async_generator, not a list"
    ),
    "a length that is not true": returns(
        "Lie([1.0])", "class Lie(list):\n    def __len__(self): return 3", mistake="of 3 entries that gives 1"
    ),
    "a length that raises": Case(
        "class Odd(list):\n    def __len__(self): 1 / 0\ndef score(completions): return Odd()",
        [None] * 3,
        3,
        "ZeroDivisionError",
    ),
    # Numbers that are none.
    "NaN": bad_value("float('nan')", "it gave nan"),
    "infinite": bad_value("float('inf')", "it gave inf"),
    "too large for float32": bad_value("-1e39", "it gave -1e+39"),
    "an int of 5,000 digits": bad_value("10**5000", "it returned int;"),
    "an int that float64 cannot hold": bad_value("10**400", "return a number, or None"),
    "a number in quotes": bad_value("'1.0'", "it returned '1.0'"),
    "a list": bad_value("[1.0]", "it returned [1.0]"),
    "a list of a million": bad_value("[0] * 10**6", "it returned [0, 0, 0, 0, 0, 0, ...]"),
    "a complex number": bad_value("1j", "it returned 1j"),
    "an exception object": bad_value("ValueError('x')", "it returned ValueError('x')"),
    "what raises when it is read": bad_value(
        "Odd()", "return a number", "class Odd:\n    def __float__(self): 1 / 0\n    def __repr__(self): 1 / 0"
    ),
    "an array of pairs": Case(
        "import numpy as np\ndef score(completions): return np.zeros((len(completions), 2))", [None] * 3, 3, "array"
    ),
    # What a process is left with.
    "prints 20 MB": fine("print('x' * 20_000_000)"),
    "writes to the error stream": fine("import sys; sys.stderr.write('noise\\n' * 1000)"),
    "empties its arguments": fine("[one.clear() for one in columns.values()]; completions.clear()"),
    "threads that stay": fine(
        "import threading, time; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    ),
    "other signal handlers": fine("import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 10, 14, 15)]"),
    "another folder": fine("import os; os.chdir('/')"),
    "children that stay": Case(
        "import subprocess\ndef score(completions):\n    subprocess.Popen(['sleep', '60'])\n"
        "    return [1.0] * len(completions)",
        [1.0] * 3,
        0,
        in_worker=True,
    ),
    "forks and comes back twice": Case(
        "import os\ndef score(completions):\n    os.fork()\n    return [1.0] * len(completions)",
        [1.0] * 3,
        0,
        in_worker=True,
    ),
    "closes every file": where_bad("import os; os.closerange(3, 256)", "its process ended", in_worker=True),
    "another answer each time": returns(
        "[1.0 if random.random() >= 0 else 0] * N", "import random", values=[1.0] * 3, failures=0
    ),
    # Fine, though unusual.
    "bools, fractions, decimals": returns(
        "[True, Fraction(1, 2), Decimal('2.5')][:N]",
        "from fractions import Fraction\nfrom decimal import Decimal",
        values=[1.0, 0.5, 2.5],
        failures=0,
    ),
    "no opinion on anything": returns("[None] * N", values=[None] * 3, failures=0),
    "an array of float16": returns("np.ones(N, np.float16)", "import numpy as np", values=[1.0] * 3, failures=0),
}

# Files that cannot be used at all → what the message says.
FILES: dict[str, tuple[bytes, str]] = {
    "syntax error": (b"def score(:", "SyntaxError"),
    "null bytes": (b"def score(\0): pass", "cannot be imported"),
    "not UTF-8": (b"x = '\xe9'\ndef score(completions): pass", "SyntaxError"),
    "empty": (b"", "has no function 'score'"),
    "missing name": (b"def scores(completions): return []", "did you mean scores?"),
    "missing import": (b"import no_such_module_at_all", "No module named"),
    "raises at import": (b"raise RuntimeError('not here')", "RuntimeError: not here"),
    "exits at import": (b"import sys; sys.exit(0)", "SystemExit: 0"),
    "exits hard at import": (b"import os; os._exit(0)", "its process ended with exit code 0"),
    "hangs at import": (b"import time; time.sleep(60)", "it took longer than"),
    "recursion at import": (b"def f(): f()\nf()", "RecursionError"),
    "not callable": (b"score = 3", "is int, not a function"),
    "a class": (b"class score: pass", "is type, not a function"),
    "a name that raises": (b"def __getattr__(name): 1 / 0", "ZeroDivisionError"),
    "arguments that are not told": (b"score = dict.fromkeys.__class__", "not a function"),
    "arguments by place": (b"def score(completions, /): return []", "takes completions by its place alone"),
    "a column that is not there": (b"def score(completions, nowhere): return []", "needs the column nowhere"),
}

CASES: dict[str, object] = FUNCTIONS | FILES
