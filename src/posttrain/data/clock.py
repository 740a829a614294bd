"""The date that chat templates print: the same one every day.

Templates ask for today's date with `strftime_now` (Llama 3, gpt-oss). Rows that were prepared today and tomorrow would
then be other tokens under one name, and a run that is resumed tomorrow would go on with other prompts. So here it is
always the same day, wherever a template is rendered: in training, in prompts, for reward models and in evaluation.
"""

from datetime import datetime

DATE = datetime(2024, 7, 26)  # what templates of Llama 3 print where there is no clock


def stop_clock(template: str) -> None:
    """Let a chat template find DATE where it asks for today's; in this process, for good.

    transformers gives templates their clock when it compiles them, and keeps what it has compiled. A variable that is
    given to a rendering would not do: all of those are made plain data, which functions are not.

    Raises:
        TemplateSyntaxError: the template is none.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(template).globals["strftime_now"] = DATE.strftime
