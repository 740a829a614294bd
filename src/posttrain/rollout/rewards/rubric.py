"""What a judge is asked, and the number in its answer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from posttrain.errors import UserError
from posttrain.rollout.rewards.batch import RewardBatch, text_of

GENERAL_RUBRIC = """\
Judge how well the response answers the prompt: is it correct, helpful, complete and to the point?

[Prompt]
{{ prompt }}

[Response]
{{ completion }}

Give your reasons in at most three sentences. Then end with a line of its own, from 0 (useless) to 10 (perfect):
Score: <number>
"""
_OWN = ("prompt", "completion")
HIGHEST = 10  # of the scores that the general rubric asks for
# Each digit is looked at once, however many there are.
_NUMBER = r"[-+]?(?:\d++(?:\.\d++)?+|\.\d++)"
_SCORE = re.compile(rf"\bscore\b[\s*_]*[:=][\s*_]*(?P<number>{_NUMBER})(?![\d.]*\d|e[-+]?\d)", re.IGNORECASE)


class Rubric:
    """A Jinja template of `prompt`, `completion` and the columns of the data.

    Args:
        path: its file; None: the built-in one.

    Attributes:
        columns: the columns that it names.

    Raises:
        UserError: the file cannot be read, is no template, or never names the completion.
    """

    def __init__(self, path: str | None):
        self._name = path or "the built-in rubric"
        self._asks_generally = path is None
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            text = GENERAL_RUBRIC if path is None else Path(path).expanduser().read_text(encoding="utf-8-sig")
            names = meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"judge_rubric: {path} cannot be read: {error}") from error
        except TemplateSyntaxError as error:
            raise UserError(
                f"judge_rubric: {path} line {error.lineno}: {error.message}", "rewards.md#judges"
            ) from error
        if "completion" not in names:
            raise UserError(
                f"judge_rubric: {path} never says {{{{ completion }}}}, so the judge would not see it",
                "rewards.md#judges",
            )
        self.columns = sorted(names - {*_OWN, *environment.globals})

    def render(self, batch: RewardBatch) -> list[str]:
        """The question for each of the C completions.

        Raises:
            UserError: the template fails on a row.
        """
        return [self._render_row(batch, row) for row in range(len(batch))]

    def _render_row(self, batch: RewardBatch, row: int) -> str:
        values: Mapping[str, Any] = {name: column[row] for name, column in batch.columns.items()} | {
            "prompt": text_of(batch.prompts[row]),
            "completion": text_of(batch.completions[row]),
        }
        try:
            text = self._template.render(values)
        except Exception as error:  # a template is a program of the user's
            reason = str(error).strip() or type(error).__name__
            raise UserError(f"judge_rubric: {self._name} fails at {batch.places[row]}: {reason}") from error
        return text.encode(errors="replace").decode()  # half a surrogate pair cannot be sent

    def read_score(self, answer: str) -> float | None:
        """The score in an answer.

        Raises:
            ValueError: it lies outside of what was asked for.
        """
        score = read_score(answer)
        if score is not None and self._asks_generally and not 0 <= score <= HIGHEST:
            raise ValueError(f"{score:g} is not between 0 and {HIGHEST}, as was asked")
        return score


def read_score(answer: str) -> float | None:
    """The number behind the last `Score:` of a judge's answer, or the answer where it is a number and nothing else.

    Markdown's asterisks around it do not matter; of `7/10` the 7 counts.

    Returns:
        the number, or None where there is none.
    """
    found = [match["number"] for match in _SCORE.finditer(answer)]
    if not found and re.fullmatch(_NUMBER, answer.strip()):
        found = [answer.strip()]
    return float(found[-1]) if found else None
