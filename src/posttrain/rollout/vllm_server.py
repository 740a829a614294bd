"""A vLLM server that completions come from: is it the right one before anything is loaded, and what if it is lost on
the way. Weights go to it as a folder that both see; each completion says which weights have drawn it, and what others
have drawn is not taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import stop
from posttrain.errors import EngineLost, UserError
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_client import Answer, GoneError, RefusedError, ServerFacts, VLLMClient
from posttrain.rollout.vllm_engine import Drawn, parameters

if TYPE_CHECKING:
    from posttrain.config import PolicyConfig

logger = logging.getLogger(__name__)

PAGE = "vllm.md"
# How often a server that is there again, and at once lost again, is tried before the run gives up.
_MOST_ROUNDS = 3


def check_server(config: PolicyConfig, last_token: int) -> ServerFacts:
    """Waits for the server, and looks whether it can do what a run asks of it; before weights are loaded.

    Args:
        config: of the run.
        last_token: the largest token id of the model.

    Raises:
        UserError: it does not come, or is not the right one.
    """
    client, where = VLLMClient(config.vllm_address, config.vllm_server_timeout), f"vLLM server {config.vllm_address}"

    def tell(reason: str) -> None:
        logger.info("Waiting up to %g s for the %s: %s", client.patience, where, reason)

    try:
        client.wait(lambda: False, tell)
        facts = client.facts()
        client.weight_version()
        request = _request([last_token], parameters(Sampling(1, (), top_k=1), 0, None), "posttrain")
        (answer,) = client.complete([request])
    except GoneError as gone:
        raise UserError(
            f"{where}: {gone}; start it ({PAGE} has the command), correct --vllm_server_base_url, or wait longer with "
            "--vllm_server_timeout",
            f"{PAGE}#the-server",
        ) from gone
    except RefusedError as refused:
        raise UserError(f"{where}: {refused}; {_what_to_do(str(refused))}", f"{PAGE}#the-server") from refused
    if isinstance(answer, GoneError):
        raise UserError(f"{where}: {answer}; its own messages say why", f"{PAGE}#the-server")
    if answer.logprobs[0] < -1e-6:  # the only token that top_k 1 leaves has the probability 1
        raise UserError(
            f"{where} tells log-probs of the model and not of what it draws from; start it with "
            "--logprobs-mode processed_logprobs",
            f"{PAGE}#the-server",
        )
    return facts


def _what_to_do(refusal: str) -> str:
    if "scale-out" in refusal:
        return "start it with --enable-scale-out"
    if "HTTP 401" in refusal:
        return "set VLLM_API_KEY to the key that it was started with"
    if "HTTP 404" in refusal:
        return "start it with VLLM_SERVER_DEV_MODE=1, and take a version that vllm.md names"
    if "HTTP 400" in refusal and "vocab" in refusal:
        return "it serves another model than this one; serve the model that is trained"
    return "is that a vLLM, of a version that vllm.md names, with the model that is trained?"


class VLLMServer:
    """One server, asked by each process for its own completions.

    Args:
        client: asks it.
        rank: number of this process.
    """

    loads_everywhere = False

    def __init__(self, client: VLLMClient, rank: int) -> None:
        self.client, self.rank = client, rank
        self._weights: tuple[Path, str] | None = None
        self._comebacks = 0

    def remember(self, folder: Path, version: str) -> None:
        """Which weights completions are to be drawn with."""
        self._weights = folder, version

    def load(self, folder: Path, version: str) -> None:
        """Sends weights; waits for a server that is lost."""
        self.remember(folder, version)
        for _ in range(_MOST_ROUNDS):
            try:
                return self.client.load(folder, version)
            except GoneError as gone:
                last = str(gone)
                self._wait(last)
            except RefusedError as refused:
                raise self._lost(str(refused)) from refused
        raise self._lost(last)

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        regex: str | None = None,
    ) -> list[Drawn]:
        """A completion of each prompt, with the weights that were loaded last; waits for a server that is lost, and
        sends them again."""
        assert self._weights is not None
        found: dict[int, Drawn] = {}
        in_vain = 0
        while missing := [place for place in range(len(prompts)) if place not in found]:
            asked = [parameters(sampling, seeds[place], regex) for place in missing]
            requests = [_request(prompts[place], one, self._salt()) for place, one in zip(missing, asked, strict=True)]
            try:
                answers = self.client.complete(requests)
            except RefusedError as refused:
                raise self._lost(str(refused)) from refused
            new = {
                place: Drawn(answer.token_ids, answer.logprobs, answer.ended)
                for place, answer in zip(missing, answers, strict=True)
                if isinstance(answer, Answer) and answer.versions == {self._weights[1]}
            }
            found |= new
            if len(new) < len(missing):
                in_vain = 0 if new else in_vain + 1
                gone = [str(answer) for answer in answers if isinstance(answer, GoneError)]
                reason = gone[0] if gone else "it has started anew, with other weights"
                if in_vain == _MOST_ROUNDS:
                    raise self._lost(reason)
                self._bring_back(reason)
        return [found[place] for place in range(len(prompts))]

    def rest(self) -> None:
        """Nothing: it has a device of its own."""

    def close(self) -> None:
        """The server is not this run's to end."""

    def _salt(self) -> str:
        """What keys and values are cached under: what a server that came back has computed before it got the weights is
        never read again."""
        assert self._weights is not None
        return self._weights[1] + (f".{self.rank}.{self._comebacks}" if self._comebacks else "")

    def _bring_back(self, reason: str) -> None:
        assert self._weights is not None
        self._wait(reason)
        try:
            if self.client.weight_version() != self._weights[1]:
                self.client.load(*self._weights)
        except GoneError:
            pass  # the next round waits again
        except RefusedError as refused:
            raise self._lost(str(refused)) from refused
        self._comebacks += 1

    def _wait(self, reason: str) -> None:
        logger.warning(
            "The vLLM server %s is lost: %s. Waiting up to %g s for it to come back.",
            self.client.address,
            reason,
            self.client.patience,
        )
        try:
            self.client.wait(lambda: stop.asked() is not None, lambda _: None)
        except GoneError as gone:
            raise self._lost(str(gone)) from gone
        logger.warning("The vLLM server %s is there; it gets the weights of now.", self.client.address)

    def _lost(self, reason: str) -> EngineLost:
        text = f"the vLLM server {self.client.address} is lost: {reason}"
        return EngineLost(text, f"{PAGE}#when-it-is-lost", stop.asked())


def make_server(config: PolicyConfig, rank: int) -> VLLMServer:
    """The server of a run.

    Args:
        config: of the run.
        rank: number of this process.
    """
    return VLLMServer(VLLMClient(config.vllm_address, config.vllm_server_timeout), rank)


def _request(prompt: Sequence[int], sampling: dict[str, Any], salt: str) -> dict[str, Any]:
    return {"token_ids": list(prompt), "sampling_params": sampling, "cache_salt": salt}
