"""Broken and hostile chat templates, and rows that make a template fail."""

from __future__ import annotations

from typing import Any

from helpers_corpus import Case, bad, fine, lines
from helpers_data import PLAIN_TEMPLATE, bot, user

TALK = [user("q"), bot("a")]
SFT = lines({"messages": TALK}, {"messages": TALK})
PAIRS = lines({"prompt": TALK[:1], "chosen": [bot("a")], "rejected": [bot("b")]})
PROMPTS = lines({"prompt": TALK[:1]})
SOUND = "<|user|>q<|end|>\n<|bot|>a<|end|>\n"
SAY = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' }}{% endfor %}"
TOO_SLOW = ("has not come to an end", "--chat_template_path")
TOO_BIG = ("goes beyond its limits", "--chat_template_path")


def broken(template: Any, *said: str, data: Any = SFT, kind: str = "sft", **more: Any) -> Case:
    return bad(kind, data, *said, template=template, **more)


def escape(expression: str, *said: str) -> Case:
    """A way out of the sandbox: nothing comes of it, or the sandbox says so."""
    said = said or ("rows.jsonl line 1", "cannot render it")
    return broken("{{ " + expression + " }}" + SAY, *said)


def without_end(template: str, **more: Any) -> Case:
    return broken(template, *TOO_SLOW, limit=0.2, **more)


CASES: dict[str, Case] = {
    # Syntax
    "a tag that is not closed": broken("{% for m in messages %}{{ m.content }}", "chat template line 1"),
    "an expression that is not closed": broken("a\n{{ messages ", "chat template line 2"),
    "an unknown tag": broken("{% fro m in messages %}{% endfro %}", "chat template line 1", "fro"),
    "an unknown filter": broken("\n\n{{ messages | sortt }}", "chat template line 3", "sortt"),
    "an unknown test": broken("{{ messages is likeable }}", "chat template line 1", "likeable"),
    "brackets 10,000 deep": broken("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "template"),
    "brackets 150 deep": broken("{{ " + "[" * 150 + "]" * 150 + " }}" + SAY, "template"),
    "a long sum": broken("{{ " + "+".join(["1"] * 3_000) + " }}" + SAY, "template"),
    "an error message of 10 MB": broken("{% " + "x" * 10_000_000 + " %}", "chat template line 1"),
    # What is not there
    "an undefined name, called": broken("{{ render(messages) }}", "line 1", "'render' is undefined"),
    "an attribute of an undefined name": broken("{{ a.b.c }}" + SAY, "line 1", "'a' is undefined"),
    "a message beyond the last": broken("{{ messages[9].content.x }}" + SAY, "line 1", "no element 9"),
    "an included file": broken("{% include '/etc/passwd' %}" + SAY, "line 1", "cannot render it"),
    "an imported file": broken("{% import 'os' as os %}" + SAY, "line 1", "cannot render it"),
    "an extended file": broken("{% extends 'base' %}" + SAY, "line 1", "cannot render it"),
    "the module loader of Python": broken("{{ __import__('os').system('true') }}" + SAY, "line 1", "undefined"),
    # What fails
    "a refusal": broken("{{ raise_exception('roles must alternate') }}", "2 of", "line 1", "roles must alternate"),
    "a refusal of 10 MB": broken("{{ raise_exception('x' * 10000000) }}", "line 1", "xxx"),
    "a refusal of nothing": broken("{{ raise_exception('') }}", "line 1", "cannot render it"),
    "a refusal of one row": broken(
        "{% if messages|length != 2 %}{{ raise_exception('two messages') }}{% endif %}" + SAY, "1 of", "line 2",
        data=lines({"messages": TALK}, {"messages": [*TALK, user("q")]}),
    ),
    "roles that do not alternate": broken(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
        "{% endif %}{{ m.content }}{% endfor %}",
        "line 1", "alternate", data=lines({"messages": [user("q"), user("q"), bot("a")]}),
    ),
    "an unknown role": broken(
        "{% for m in messages %}{{ {'user': 'U', 'assistant': 'A'}[m.role] + m.content }}{% endfor %}",
        "line 1", "cannot render it", data=lines({"messages": [{"role": "usr", "content": "q"}]}),
    ),
    "a division by zero": broken("{{ 1 / 0 }}", "line 1", "division by zero"),
    "text plus a number": broken("{{ messages[0].content + 1 }}", "line 1", "cannot render it"),
    "a macro that calls itself": broken("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "line 1", "recursion"),
    "messages that hold themselves": broken("{% set m = messages %}{{ m.append(m) }}", "line 1", "cannot render it"),
    # What does not end, or is too much
    "a loop of a thousand million": broken("{% for i in range(10**9) %}{% endfor %}" + SAY, "line 1", "Range too big"),
    "loops in loops": without_end(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + SAY
    ),
    "loops in loops, for answers alone": without_end(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + SAY,
        flags={"assistant_only_loss": True},
    ),
    "loops in loops, for pairs": without_end(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", data=PAIRS, kind="preference"
    ),
    "loops in loops, for prompts": without_end(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", data=PROMPTS, kind="prompts"
    ),
    "loops in one row alone": without_end(
        "{% if messages|length > 2 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}" + SAY,
        data=lines({"messages": TALK}, {"messages": [*TALK, *TALK]}),
    ),
    "loops within what is marked": without_end(
        "{% generation %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endgeneration %}" + SAY,
        flags={"assistant_only_loss": True},
    ),
    "macros that call each other twice": without_end(
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}" + SAY
    ),
    "a power without end": without_end("{{ (7 ** (9 ** 9)) % 7 }}" + SAY),
    "a power of powers": without_end("{% set x = messages | length %}{{ ((x + 5) ** (9 ** 9)) % 7 }}" + SAY),
    "20 MB": broken("{{ 'x' * 20000000 }}" + SAY, *TOO_BIG, "20,0"),
    "100 MB of messages": broken("{% for i in range(10) %}{{ messages[0].content * 9999999 }}{% endfor %}", *TOO_BIG),
    "1 TB": broken("{{ 'x' * 10**12 }}" + SAY, *TOO_BIG, "memory"),
    "1 TB by centring": broken("{{ 'x' | center(10**12) }}" + SAY, *TOO_BIG, "memory"),
    "1 TB by format": broken("{{ '%1000000000000d' % 1 }}" + SAY, "line 1"),
    "text that doubles": broken(
        "{% set n = namespace(s='x' * 1000000) %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}" + SAY,
        "goes beyond its limits",
    ),
    "a list of lists that doubles": broken(
        "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}" + SAY,
        "goes beyond its limits", limit=2.0,
    ),
    # The sandbox
    "the classes of Python": escape("''.__class__.__mro__", "line 1", "unsafe"),
    "the classes by map": escape("['']|map(attribute='__class__')|first|string|wordcount + x", "line 1"),
    "the globals of a function": escape("raise_exception.__globals__.os", "line 1", "unsafe"),
    "the globals by a cycler": escape("cycler.__init__.__globals__.os", "line 1", "unsafe"),
    "the code of a macro": escape("lipsum.__globals__['os'].popen('true').read()", "line 1", "unsafe"),
    "the format of a text": escape("'{0.__class__.__mro__}'.format(1)", "line 1", "unsafe"),
    "changing messages": escape("messages.clear()", "line 1", "unsafe"),
    "changing a message": escape("messages[0].update(content='x')", "line 1", "unsafe"),
    "the globals of a namespace": escape("namespace.__init__.__globals__.os", "line 1", "unsafe"),
    # What says nothing
    "nothing at all": broken("", "leaves out what messages say"),
    "a comment": broken("{# nothing #}", "leaves out what messages say"),
    "one text for all": broken("<|user|>hello<|end|>", "leaves out what messages say", "hello"),
    "one text for all pairs": broken("<|user|>hello", "leaves out what messages say", data=PAIRS, kind="preference"),
    "one text for all prompts": broken("<|user|>hello", "leaves out what messages say", data=PROMPTS, kind="prompts"),
    "roles alone": broken("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out what messages say"),
    "lone surrogates": broken(SAY + "\ud800", "line 1", "half a character"),
    "no template": broken(None, "no chat template", "line 1", "--chat_template_path"),
    "questions alone, answers trained": broken(
        "{{ messages[0].content }}", "none is left to train on", flags={"assistant_only_loss": True},
    ),
    "pairs that are one to the model": broken(
        "{% for m in messages %}{{ m.content | lower }}{% endfor %}", "line 1", "chosen = rejected in tokens",
        data=lines({"prompt": TALK[:1], "chosen": [bot("a")], "rejected": [bot("A")]}), kind="preference",
    ),
    "pairs that are one to the reward": broken(
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}", "line 1", "chosen = rejected in tokens",
        data=lines({"prompt": TALK[:1], "chosen": [bot("a")], "rejected": [bot("a ")]}), kind="reward",
    ),
    # What is in fact fine
    "not prefix-stable": fine(
        "sft", lines({"prompt": TALK[:1], "completion": TALK[1:]}), ["q?a|"], "not those before its completion",
        template="{% for m in messages %}{{ m.content }}{{ '?' if m.role == 'user' else '|' }}{% endfor %}"
        "{% if add_generation_prompt %}bot:{% endif %}",
    ),
    "no generation prompt": fine("prompts", PROMPTS, ["user: q\n"], template=SAY),
    "a refusal of what is tried out": fine(
        "sft", lines({"messages": [{"role": "system", "content": "be brief"}]}), ["be brief"],
        template="{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
    ),
    "attributes that are hidden": fine(
        "sft", lines({"messages": TALK}), [SOUND],
        template="{{ messages.__class__ }}{{ ''|attr('__class__')|attr('__mro__') }}" + PLAIN_TEMPLATE,
    ),
    "content like a template": fine(
        "sft", lines({"messages": [user("{{ 1/0 }}"), bot("{% include 'a' %}")]}),
        ["<|user|>{{ 1/0 }}<|end|>\n<|bot|>{% include 'a' %}<|end|>\n"],
    ),
    "a call of a tool": fine(
        "sft", lines({"messages": [user("q"), {"role": "assistant", "tool_calls": [{"name": "f"}]}]}),
        ["user: q\nassistant: f\n"],
        template="{% for m in messages %}{{ m.role }}: {{ m.tool_calls[0].name if m.tool_calls else m.content }}"
        "{{ '\n' }}{% endfor %}",
    ),
    "a long conversation": fine(
        "sft", lines({"messages": TALK * 300}), [SOUND * 300], flags={"max_length": None}
    ),
}  # fmt: skip
