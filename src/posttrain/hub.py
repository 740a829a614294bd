"""The Hugging Face hub: questions to it, what its errors mean for the user, and where its token is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

PAGE = "troubleshooting.md#hub"
SECONDS = 10.0  # that a question to the hub may take
TOKEN = "HF_TOKEN"
_PASSWORD = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*:/{1,2})[^\s/@]+@")


def explain(error: BaseException, what: str) -> UserError | None:
    """What a library's error about the hub means, and what to do.

    Args:
        error: As it was caught; what it came from is looked at too.
        what: Flag and name, with which the message begins: "--dataset_name trl-lib/Capybara".

    Returns:
        The error to raise, or None where this one is not about the hub.
    """
    chain = list(_chain(error))
    # "It cannot be had" often hides an answer of the hub that says why.
    for problem in (_answer, _silence):
        for found in chain:
            text = problem(found)
            if text is not None:
                return UserError(f"{what}: {hide_token(text)}", PAGE)
    return None


def hide_token(text: str) -> str:
    """A text without the user's token, and without the passwords of addresses, should they stand in there."""
    text = _PASSWORD.sub(r"\1***@", text)
    token = os.environ.get(TOKEN, "").strip()
    return text.replace(token, "***") if token else text


def address() -> str:
    """Where the hub is."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_on_hub(name: str) -> bool:
    """Whether a model or data set is looked up on the hub: nothing here has this name, and it is no path."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        return False
    try:
        return not Path(name).exists()
    except (OSError, ValueError):  # too long for a file, or with NUL in it
        return True


def ask(path: str) -> Any:
    """One question to the hub, without repetitions.

    Args:
        path: Behind the hub's address, such as "api/whoami-v2".

    Returns:
        The response.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The hub refuses.
        OSError: It cannot be reached (an error of httpx, too).
    """
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().get(f"{address()}/{path}", headers=build_hf_headers(token=token()), timeout=SECONDS)
    hf_raise_for_status(response)
    return response


def token() -> str | None:
    """The user's token: HF_TOKEN, or that of `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()


def is_unreachable(error: BaseException) -> bool:
    """Whether no answer of the hub came at all."""
    names = {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"}
    return any(
        isinstance(one, TimeoutError | ConnectionError)
        or any(cls.__name__ in names and cls.__module__.startswith("httpx") for cls in type(one).__mro__)
        for one in _chain(error)
    )


def status(error: BaseException) -> int | None:
    """The HTTP status that an error of the hub came with."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    rest: BaseException | None = error
    while rest is not None and id(rest) not in seen:
        seen.add(id(rest))
        yield rest
        rest = rest.__cause__ or rest.__context__


def _answer(error: BaseException) -> str | None:
    """What the hub answers, in the user's words; None for an error that is no answer of it."""
    names = {cls.__name__ for cls in type(error).__mro__}  # huggingface_hub is not imported to find that it is not its
    of_datasets = "DatasetNotFoundError" in names  # which hides the hub's own error, and keeps its sense
    if "GatedRepoError" in names or (of_datasets and "gated" in str(error)):
        return f"its authors grant access on request: ask for it on its page at {address()}, and {_how_to_log_in()}"
    if "RepositoryNotFoundError" in names or of_datasets:
        return (
            f"there is no such file or folder here, and {address()} has no repository of this name, or a private one: "
            f"check the spelling, and to use a private one, {_how_to_log_in()}"
        )
    if "RevisionNotFoundError" in names:
        return "the repository has no such branch, tag or commit; its page on the hub lists those it has"
    if "DisabledRepoError" in names:
        return "the hub has disabled this repository; take another one"
    if "LocalTokenNotFoundError" in names:
        return f"no token is set; {_how_to_log_in()}"
    return _refusal(error) if "HfHubHTTPError" in names and "EntryNotFoundError" not in names else None


def _refusal(error: BaseException) -> str | None:
    code, said = status(error), str(getattr(error, "server_message", None) or error).strip().splitlines()
    if code == 401:
        return f"the hub does not accept the token (has it expired, was it copied whole?); {_how_to_log_in(anew=True)}"
    if code == 403:
        return f"the token does not have the right to do this; {_how_to_log_in(anew=True)}"
    if code == 429:
        return f"the hub has had too many requests from here; wait some minutes, and {_how_to_log_in()}"
    if code is not None and code >= 500:
        return f"the hub has a fault of its own (HTTP {code}); try again later, or name a local folder"
    return f"the hub refuses (HTTP {code}): {said[0]}" if said else None


def _silence(error: BaseException) -> str | None:
    """Why there is no answer; None for an error that is about something else."""
    names = {cls.__name__ for cls in type(error).__mro__}
    is_asked = is_unreachable(error) and (type(error).__module__.startswith("httpx") or "hub" in str(error).lower())
    if not is_asked and not names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return None
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or "LocalEntryNotFoundError" in names:
        return (
            f"it is not on this machine, and the hub ({address()}) cannot be reached, or is not to be asked "
            "(HF_HUB_OFFLINE is set); check the network, or name a local folder"
        )
    return f"the hub ({address()}) cannot be reached; check the network, or name a local folder"


def _how_to_log_in(anew: bool = False) -> str:
    if token() is not None and not anew:
        return "check that the token belongs to an account that has access"
    return f"make a token at {address()}/settings/tokens and set {TOKEN}, or run `hf auth login`"
