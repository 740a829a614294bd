"""Before anything loads: whether what the flags name on the hub can be read, and what is made can be uploaded."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from posttrain.config import CommonConfig, PolicyConfig
from posttrain.config.paths import adapter_base
from posttrain.config.rewards import JUDGE
from posttrain.errors import UserError
from posttrain.hub import PAGE, TOKEN, address, ask, explain, is_on_hub, is_unreachable, status, token

logger = logging.getLogger(__name__)

BUILDERS = ("json", "csv", "parquet")  # as the path of a mixture's entry: local files of this kind
TASKS = ("sentiment-analysis:", "text-classification:")  # before the name of a model that gives rewards


def take_token(config: CommonConfig) -> None:
    """Move `hub_token` from the flags to the environment of this process and of those that it starts. There every
    library finds it, for reading too, and nothing that shows flags or command lines can show it."""
    if config.hub_token is not None:
        os.environ[TOKEN], config.hub_token = config.hub_token, None
        sys.argv[:] = without_token(sys.argv)


def without_token(words: Sequence[str]) -> list[str]:
    """A command line without `--hub_token` and its value."""
    kept: list[str] = []
    is_value = False
    for word in words:
        name, _, value = word.replace("-", "_").partition("=")
        if name == "__hub_token":
            is_value = not value
        elif is_value and not word.startswith("--"):
            is_value = False
        else:
            is_value = False
            kept.append(word)
    return kept


def check(config: CommonConfig) -> None:
    """`check_readable`; and with `push_to_hub`, ask who the user is, and whether they may write.

    Args:
        config: Of the run; its hub_token is moved to the environment, its hub_model_id gets an owner.

    Raises:
        UserError: As for check_readable, or the token is missing, wrong, or without the right to write.
    """
    take_token(config)
    if config.push_to_hub:
        _check_upload(config)
    check_readable(config)


def check_readable(config: CommonConfig) -> None:
    """Ask the hub, once for each name that is not on this machine, whether this user can read it. Where the hub cannot
    be reached, everything is taken from earlier downloads at once, in place of many attempts.

    Args:
        config: Of the run; its hub_token is moved to the environment.

    Raises:
        UserError: A name is not there, or not to be read.
    """
    take_token(config)
    names = list(_names(config))
    if not names:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        for name in names:
            if name.adapter:  # of others, loading tells it as well
                _find_download(name)
        return
    for name in names:
        if not _can_read(name):
            _stay_offline()
            for one in names:
                _find_download(one)
            return


class _Name(NamedTuple):
    """Something that a flag names, its kind on the hub, and which version of it."""

    flag: str
    name: str
    kind: str = "models"
    revision: str = "main"
    adapter: str = ""  # the folder whose file names it

    def __str__(self) -> str:
        if not self.adapter:
            return f"--{self.flag} {self.name}"
        return (
            f"--{self.flag} {self.adapter} is an adapter; its base {self.name} (base_model_name_or_path in its "
            "adapter_config.json)"
        )


def _names(config: CommonConfig) -> Iterator[_Name]:
    found = [_Name("model_name_or_path", config.model_name_or_path or "", revision=config.model_revision)]
    found += [
        _Name(flag, getattr(config, flag, None) or "") for flag in ("ref_model_name_or_path", "chat_template_path")
    ]
    if isinstance(config, PolicyConfig):
        for flag, source in [
            ("reward_model_name_or_path", config.reward_model_name_or_path or ""),
            *(("reward_funcs", source) for source in config.reward_funcs or () if source.startswith(TASKS)),
        ]:
            name = source.partition(":")[2] if source.startswith((*TASKS, JUDGE)) else source
            if not source.startswith(JUDGE):
                found.append(_Name(flag, name, revision=config.reward_model_revision))
    for one in list(found):
        base = adapter_base(one.name) if one.name else None
        if base is not None:
            found.append(_Name(one.flag, base, adapter=one.name))
    found.append(_Name("dataset_name", config.dataset_name or "", "datasets"))
    found += [
        _Name("datasets", source.path, "datasets", source.revision or "main")
        for source in config.datasets
        if source.path not in BUILDERS
    ]
    yield from (one for one in dict.fromkeys(found) if one.name and is_on_hub(one.name))


def _can_read(name: _Name) -> bool:
    """False where the hub does not answer."""
    try:
        ask(f"api/{name.kind}/{name.name}/auth-check")
        if name.revision != "main":
            ask(f"api/{name.kind}/{name.name}/revision/{quote(name.revision, safe='')}")
    except Exception as error:
        if is_unreachable(error):
            return False
        # A mirror may not know the first question, and then loading tells.
        answers = ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError")
        if status(error) == 401 or type(error).__name__ in answers:
            raise explain(error, str(name)) or error from None
    return True


def _find_download(name: _Name) -> None:
    """Where data sets of the hub are kept, their library alone knows."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = ("config.json", "adapter_config.json", "tokenizer_config.json")
    found = (try_to_load_from_cache(name.name, file, revision=name.revision) for file in files)
    if name.kind == "models" and not any(isinstance(path, str) for path in found):
        raise explain(LocalEntryNotFoundError(name.name), str(name)) or AssertionError


def _stay_offline() -> None:
    """From now on, here and in the processes that this one starts."""
    from huggingface_hub import constants

    logger.warning("The hub (%s) cannot be reached: what it is asked for is taken from earlier downloads.", address())
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _check_upload(config: CommonConfig) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--push_to_hub: nothing can be uploaded while HF_HUB_OFFLINE is set; unset it, or leave push_to_hub out "
            "and upload the finished folder later: hf upload REPOSITORY FOLDER",
            PAGE,
        )
    if os.environ.get("RANK", "0") == "0":
        _find_owner(config)


def _find_owner(config: CommonConfig) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if token() is None:
        raise UserError(
            f"--push_to_hub: no token is set; make one with the right to write at {address()}/settings/tokens, then "
            f"set {TOKEN} or run `hf auth login`",
            PAGE,
        )
    try:
        user: dict[str, Any] = ask("api/whoami-v2").json()
    except Exception as error:
        raise explain(error, "--push_to_hub") or error from None
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise UserError(
            f"--push_to_hub: the token of {user['name']} may only read; make one with the right to write at "
            f"{address()}/settings/tokens",
            PAGE,
        )
    name = config.hub_model_id or Path(config.output_dir).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--push_to_hub: {name!r} is no name for a repository; give one with --hub_model_id: {error}", PAGE
        ) from None
    owner, _, rest = name.rpartition("/")
    owners = [user["name"], *(one["name"] for one in user.get("orgs") or ())]
    if owner and owner not in owners:
        raise UserError(
            f"--hub_model_id {name}: the token is that of {owners[0]}, who can upload to {', '.join(owners)}, not to "
            f"{owner}; give {owners[0]}/{rest}, or another token",
            PAGE,
        )
    config.hub_model_id = name if owner else f"{owners[0]}/{rest}"
    if config.use_peft and not is_on_hub(str(config.model_name_or_path)):
        logger.warning(
            "--push_to_hub: the adapter will name %s as its base, a folder of this machine; who loads it elsewhere has "
            "to name another one.",
            config.model_name_or_path,
        )
