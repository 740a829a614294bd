"""Chat templates at work, within limits: a template is a program that comes with a model or a file of somebody else's.

It runs in the sandbox of transformers, which keeps it from Python's internals, files and imports. What the sandbox does
not limit is limited here, for every single rendering: the time of the processor, the memory, and how much more text
comes out than went in. Setting the limits takes 9 µs on the machine where this was measured; rendering a conversation
of two turns took 30 to 50. With all that is looked at in data files, preparing rows takes about a tenth longer.

The clock is that of a signal, which Python delivers to the main thread alone: elsewhere there is no limit of time.
Memory is limited where the system says how much a process has (Linux).
"""

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from posttrain.data.clock import stop_clock
from posttrain.data.json_text import letters_in, shortened
from posttrain.data.problems import RowError
from posttrain.errors import UserError
from posttrain.memory_limit import limited_memory

SECONDS = 10.0  # of the processor
MEMORY = 2**31  # bytes above what the process has
FREE_LETTERS, LETTERS_FOR_ONE = 2**20, 20  # a rendering may be so long, and so many times as long as what it is of
_PAGE = "troubleshooting.md#data"
_PROBES = ("Qwertz", "Bvlyxh")

# Arguments of apply_chat_template beside which a template's own variables are given.
_NOT_VARIABLES = frozenset(
    "conversation messages tools chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask sanitize_control_tokens "
    "tokenizer_kwargs".split()
)

_files: dict[str, str] = {}  # template → the file that it was read from
_seen: set[str] = set()  # templates that have shown that they write what messages say


class _TimeIsUp(BaseException):  # which no part of a template catches
    """The processor has worked on one rendering for SECONDS."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise _TimeIsUp


def _with_limits(render: Callable[[], str]) -> str:
    has_clock = threading.current_thread() is threading.main_thread()
    if has_clock and signal.getsignal(signal.SIGVTALRM) is not _ring:
        signal.signal(signal.SIGVTALRM, _ring)  # for good: nobody else uses this signal, and installing it costs most
    with limited_memory(MEMORY):
        try:
            if has_clock:
                signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            return render()
        finally:
            if has_clock:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def read_from(template: str, path: str) -> None:
    """Has messages about a template name the file that it was read from."""
    _files[template] = path


def _of_file(template: str) -> str:
    return f" of {_files[template]}" if template in _files else ""


def within_limits(render: Callable[[], str], said: Any, template: str = "") -> str:
    """What a chat template makes of a conversation.

    Args:
        render: has transformers render it.
        said: all that goes in.
        template: its text.

    Raises:
        RowError: the template refuses the conversation; or it goes beyond a limit, and the error is one that ends the
            look at further rows.
        UserError: the template itself is broken.
    """
    try:
        text = _with_limits(render)
    except TemplateSyntaxError as error:
        reason = shortened(str(error.message), 300)
        where = f"chat template line {error.lineno}{_of_file(template)}"
        raise UserError(f"{where}: {reason} (--chat_template_path)", _PAGE) from error
    except _TimeIsUp:
        raise _beyond(f"it has not come to an end within {SECONDS:g} seconds", template) from None
    except MemoryError:
        raise _beyond(
            f"it needs more than {MEMORY / 2**20:,.0f} MiB of memory for one conversation", template
        ) from None
    except Exception as error:  # a template is a program of its own: it may raise anything
        reason = shortened(str(error), 300) or type(error).__name__
        mend = f"change the row or the template{_of_file(template)}"
        raise RowError("the chat template cannot render it", f"{reason}; {mend}") from error
    if len(text) > FREE_LETTERS and len(text) > LETTERS_FOR_ONE * letters_in(said):
        raise _beyond(
            f"it makes {len(text):,} characters of one conversation, more than {LETTERS_FOR_ONE} times what that says",
            template,
        )
    return text


def _beyond(reason: str, template: str) -> RowError:
    detail = f"{reason}; mend the template{_of_file(template)}, or give another one with --chat_template_path"
    return RowError("the chat template goes beyond its limits", detail, is_last=True)


def template_of(tokenizer: Any, tools: list[Any] | None) -> str:
    """The text of the template that a tokenizer uses; it may have several.

    Raises:
        RowError: it has several, and none for this.
    """
    try:
        return str(tokenizer.get_chat_template(None, tools))
    except ValueError as error:
        raise RowError(
            "no chat template", f"{shortened(str(error), 300)}; give one with --chat_template_path"
        ) from error


def apply_template(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None = None, /, **options: Any
) -> str:
    """A conversation as text; the date in it, where the template prints one, is that of `clock.DATE`.

    Args:
        tokenizer: with its chat template.
        messages: the conversation.
        tools: what the assistant may call.
        options: of `apply_chat_template`, and variables of the template's own.

    Raises:
        RowError: the template refuses it, or goes beyond a limit; or there is none.
        UserError: the template itself is broken.
    """
    template = template_of(tokenizer, tools)

    def own_render() -> str:
        stop_clock(template)
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options))

    return within_limits(own_render, (messages, tools, options), template)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises RowError where variables for the template, from the data or the flags, are more than variables."""
    taken = sorted(_NOT_VARIABLES & options.keys())
    if taken:
        raise RowError(
            "wrong chat_template_kwargs", f"{taken[0]!r} is no variable of the template's but decides how it is used"
        )


def check_says_messages(tokenizer: Any) -> None:
    """Try once, with two conversations, whether the chat template writes what messages say.

    A template that refuses such conversations (it wants a system message, say) is judged by the rows.

    Raises:
        RowError: it goes beyond a limit.
        UserError: it is broken, or leaves out what is said, so that every row would be the same to the model.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or template in _seen:
        return
    texts = []
    for word in _PROBES:
        said = [{"role": role, "content": word} for role in ("user", "assistant")]
        try:
            texts.append(apply_template(tokenizer, said))
        except RowError as error:
            if error.is_last:
                raise
    if len(texts) == len(_PROBES) and len(set(texts)) == 1:
        raise UserError(
            "the chat template leaves out what messages say: of two different conversations it makes the same, "
            f"{shortened(texts[0])!r}; mend the template{_of_file(template)}, or give another one with "
            "--chat_template_path",
            _PAGE,
        )
    _seen.add(template)
