"""Passwords and keys among the flags. Flags are written to checkpoints, run.json, trackers and dvc.lock, and stand in
the list of processes, so none of them may hold one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Flags that are secrets themselves: they are moved to the environment, and written nowhere.
SECRETS = {"hub_token"}
_KEYS = {"token", "use_auth_token", "hub_token", "hf_token", "access_token", "api_key", "x-api-key", "apikey"}
_KEYS |= {"authorization", "password", "passwd", "secret"}
# scheme://user:password@host, also with the password alone; ?token=… of an address.
_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]+@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"\b[a-z][a-z0-9+.-]*://\S*[?&](?:\w*token|api_?key|key|sig|x-amz-signature|password|secret)=[^&\s]", re.IGNORECASE
)
# The forms in which the services that runs meet write their keys: Hugging Face, OpenAI and those like it, GitHub, AWS.
# Behind sk- (sk-proj-, sk-ant-api03-) words with dashes may be a name; twenty letters and digits in a row are none.
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}\b|gh[pousr]_[A-Za-z0-9]{30,}\b|AKIA[A-Z0-9]{16}\b"
    r"|sk-[\w-]{0,160}?(?=[A-Za-z]{0,99}\d)(?=\d{0,99}[A-Za-z])[A-Za-z0-9]{20})"
)
# Values of a key such as `authorization` that say how, and not with what.
_NO_SECRETS = {"", "none", "null", "no", "off", "false", "yes", "on", "true", "auto", "default", "required", "optional"}


def secret_problems(flags: Mapping[str, Any]) -> Iterator[str]:
    """Which flags hold a secret, one message each; the secret is not in it.

    Args:
        flags: names and values, those of SECRETS left out.
    """
    for name, value in flags.items():
        for place, what in _secrets(name, value):
            yield (
                f"{place} holds {what}, which would be written into checkpoints and to trackers; leave it out, and set "
                "HF_TOKEN, OPENAI_API_KEY or what else the service reads from the environment"
            )


def _secrets(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Where secrets stand, and what they are."""
    if isinstance(value, str):
        if _PASSWORD.search(value) or _PARAMETER.search(value):
            yield place, "an address with a password or key in it"
        elif _FORMS.search(value):
            yield place, "a key"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, str) and str(key).lower() in _KEYS and inner.strip().lower() not in _NO_SECRETS:
                yield f"{place}: {key}", "a key"
            else:
                yield from _secrets(f"{place}: {key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(place, inner)
