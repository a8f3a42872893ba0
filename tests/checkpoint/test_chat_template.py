"""Chat templates: rendered as transformers does, and harmless whatever they contain."""

from __future__ import annotations

import copy
import enum
import gc
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from firstlight.checkpoint import template_process, template_worker
from firstlight.checkpoint.chat_template import ChatTemplate
from firstlight.errors import FirstlightError, RequestError, TokenizerError
from tests.support.chat_templates import TEMPLATES
from tests.support.tiny_tokenizers import byte_level_library

NAMED = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <there> & then: “mild”",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one message": [{"role": "user", "content": "  hello <b>&amp;</b> 'quoted' \"twice\"\n"}],
    "several": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three 三 👩‍👧 \u202e\x00"},
    ],
    "a system message": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ],
    "roles out of order": [
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two"},
    ],
    "empty text": [{"role": "user", "content": ""}],
    "reasoning": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbecause"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "so", "reasoning": "hm"},
    ],
    "calls": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "name": "weather"},
        {"role": "tool", "content": "rainy"},
        {"role": "assistant", "content": "It depends."},
    ],
    "parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "look "}, {"type": "image", "image": "x.png"}],
        }
    ],
    "no content": [{"role": "user"}],
    "special tokens in text": [{"role": "user", "content": "<|im_end|>{{ 1 + 1 }}{% if %}"}],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("options", [{}, {"tools": [TOOL]}, {"enable_thinking": False}])
def test_renders_as_transformers_does(
    name: str, conversation: str, options: dict[str, Any]
) -> None:
    messages = CONVERSATIONS[conversation]
    template = template_of(name)
    for prompt in (True, False):
        try:
            expected = oracle(name).apply_chat_template(
                copy.deepcopy(messages), tokenize=False, add_generation_prompt=prompt, **options
            )
        except (jinja2.TemplateError, TypeError):
            with pytest.raises((RequestError, TokenizerError)):
                template.render(messages, prompt, **options)
        else:
            assert template.render(messages, prompt, **options) == expected


def oracle(name: str, *, made: dict[str, Any] = {}) -> Any:  # noqa: B006
    if name not in made:
        made[name] = PreTrainedTokenizerFast(
            tokenizer_object=byte_level_library(), chat_template=TEMPLATES[name], **NAMED
        )
    return made[name]


def template_of(name: str, *, made: dict[str, ChatTemplate] = {}) -> ChatTemplate:  # noqa: B006
    if name not in made:
        made[name] = ChatTemplate({"default": TEMPLATES[name]}, NAMED, f"{name}.jinja")
    return made[name]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, NAMED, "hostile.jinja")


def render(source: str, **variables: Any) -> str:
    return template(source).render([{"role": "user", "content": "hi"}], **variables)


def test_a_refusal_is_told_as_the_template_words_it() -> None:
    with pytest.raises(RequestError, match="A system message has no place here"):
        template_of("gemma").render(CONVERSATIONS["a system message"])


def test_the_time_is_now() -> None:
    layout = "%Y-%m-%d %H"
    before = datetime.now().strftime(layout)
    result = render(f"{{{{ strftime_now('{layout}') }}}}")
    assert result in (before, datetime.now().strftime(layout))


def test_variables_replace_named_tokens() -> None:
    assert render("{{ bos_token }}{{ extra }}", bos_token="B", extra=[1, 2.5]) == "B[1, 2.5]"


def test_lone_surrogates_pass() -> None:
    assert (
        template("{{ messages[0].content }}").render([{"role": "user", "content": "a\ud800b"}])
        == "a\ud800b"
    )


def test_a_long_conversation() -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 5000
    text = template_of("chatml").render(messages)
    assert text.count("x") == 5_000_000


class Colour(str, enum.Enum):  # noqa: UP042  (not StrEnum, whose str() is its value)
    RED = "red"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "are empty"),
        ("hello", "are not a list"),
        ({"role": "user"}, "are not a list"),
        (["hello"], "hold 'hello'"),
        ([{"role": object()}], "no plain data"),
        ([{"role": {1: 2}}], "keys that are not text"),
        ([{"content": 10**5000}], "over a thousand digits"),
        ([{"content": b"bytes"}], "no plain data"),
    ],
)
def test_messages_that_are_none(messages: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        template("x").render(messages)


def test_messages_nested_without_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RequestError, match="nested too deeply"):
        template("x").render([{"content": endless}])


def test_enumerations_are_plain_text() -> None:
    shown = template("{{ messages[0].content }}{{ messages[0].n }}")
    assert shown.render([{"content": Colour.RED, "n": enum.IntEnum("N", "A").A}]) == "red1"


FAULTS = {
    "a syntax error": ("{% if %}", "line 1"),
    "an unknown tag": ("a\n{% fly %}", "unknown tag 'fly'.*line 2"),
    "an undefined name": ("a\nb\n{{ nobody.home }}", "UndefinedError.*line 3"),
    "an unknown filter": ("{{ 1 | fly }}", "filter named 'fly'"),
    "a wrong type": ("{{ 1 + 'a' }}", "TypeError.*line 1"),
    "division by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "an include": ("{% include '/etc/passwd' %}", "no loader"),
    "an import": ("{% import 'os' as os %}", "no loader"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    source, reason = FAULTS[name]
    with pytest.raises(TokenizerError, match=f"(?s){reason}") as caught:
        render(source)
    assert caught.value.subject == "hostile.jinja"


def doubling(expression: str, start: str = "'aa'", use: str = "{{ ns.x }}") -> str:
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(64) %}}"
        f"{{% set ns.x = {expression} %}}{{% endfor %}}{use}"
    )


# Each of these would loop for ever or fill the memory, or gets at something it should not have.
ENDLESS = {
    "nested loops": "{% for i in range(99999) %}" * 6 + "x" + "{% endfor %}" * 6,
    "nested loops without output": "{% for i in range(99999) %}" * 6 + "{% endfor %}" * 6,
    "recursion that branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for a in [[]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "a power of powers": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a large power": "{{ (3 ** (10 ** 10)) % 7 }}",
    "a constant that is folded": "{% set x = 7 ** (7 ** 12) %}",
    "comparing lists that double": doubling("[ns.x, ns.x]", "[]", "")
    + doubling("[ns.y, ns.y]", "[]", "").replace("ns", "ms").replace("ms.y", "ms.x")
    + "{{ ns.x == ms.x }}",
    "hashing tuples that double": doubling("(ns.x, ns.x)", "(1,)", "{{ {ns.x: 1} }}"),
    "sorting with a costly key": "{{ range(99999) | map('string') | sort | join | length }}" * 400,
    "a sum of lists": "{{ ((range(99999) | list) * 999) | sum }}",
    "a filter over a filter": "{{ range(99999) | map('string') | map('center', 99999) | join }}",
}
HUGE = {
    "a long string": "{{ 'a' * 10 ** 10 }}",
    "a long constant": "{% set x = 'a' * 10 ** 12 %}",
    "a long list": "{{ [0] * 10 ** 10 }}",
    "adding": doubling("ns.x + ns.x"),
    "concatenating": doubling("ns.x ~ ns.x"),
    "joining": doubling("[ns.x, ns.x] | join"),
    "replacing": doubling("ns.x | replace('a', 'aa')"),
    "formatting by %": doubling("'%s%s' % (ns.x, ns.x)"),
    "formatting by format": doubling("'{0}{0}'.format(ns.x)"),
    "a wide field by %": "{{ '%999999999d' % 1 }}" * 3,
    "a wide field by format": "{{ '{:9999999999}'.format(1) }}",
    "a wide field by filter": "{{ '%-9999999999s' | format('x') }}",
    "centring": "{{ 'x' | center(10 ** 10) }}",
    "indenting": "{{ 'a\nb' | indent(10 ** 10) }}",
    "a method of strings": "{{ 'x'.ljust(10 ** 10) }}",
    "tabs": "{{ '\t'.expandtabs(10 ** 9) * 9 }}",
    "bytes of a number": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "lists that double, printed": doubling("[ns.x, ns.x]", "[]"),
    "lists that double, as JSON": doubling("[ns.x, ns.x]", "[]", "{{ ns.x | tojson }}"),
    "JSON with wide indents": "{{ [1, [2]] | tojson(indent=10 ** 10) }}",
    "blocks that double": "{% set x = 'aa' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 64,
    "batches": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "slices": "{{ [1] | slice(10 ** 10, 'x') | list }}",
    "words": "{{ lipsum(n=10 ** 9) }}",
    "long output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "a huge range": "{{ range(10 ** 15) | list }}",
}
ESCAPES = {
    "class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by format": "{{ '{0.__class__.__init__}'.format('') }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format passed on": "{{ ['{0.__class__}'] | map('format', '') | list }}"
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "format by filter": "{{ ('{0.__class__}' | attr('format'))('') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "globals of the cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'] }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "a frame": "{{ (messages | map('upper')).gi_frame }}",
    "code": "{{ namespace.__init__.__code__ }}",
    "a private name in a namespace": "{% set n = namespace() %}{% set n.__class__ = dict %}",
    "attributes of dict": "{{ dict.mro() }}",
}
CHANGES = {
    "of a list": "{{ messages.append(1) }}",
    "of a dictionary": "{{ messages[0].update(role='x') }}",
    "of a dictionary by pop": "{{ messages[0].pop('role') }}",
}


def refused(source: str) -> str:
    with pytest.raises(FirstlightError) as caught:
        render(source)
    assert isinstance(caught.value, TokenizerError)
    assert len(str(caught.value)) < 1000
    return caught.value.reason


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests are quick; the bounds are the same code at any size."""
    monkeypatch.setattr(template_process, "PROCESSOR_SECONDS", 0.3)
    monkeypatch.setattr(template_process, "MEMORY_BYTES", 256 << 20)


@pytest.mark.usefixtures("short_limits")
class TestHostile:
    @pytest.mark.parametrize("name", ENDLESS)
    def test_what_does_not_end_is_ended(self, name: str) -> None:
        before = os.times()
        refused(ENDLESS[name])
        spent = os.times().children_user - before.children_user
        assert spent < 3 * template_process.PROCESSOR_SECONDS + 2

    @pytest.mark.parametrize("name", HUGE)
    def test_what_needs_much_memory_is_ended(self, name: str) -> None:
        refused(HUGE[name])

    @pytest.mark.parametrize("name", ESCAPES)
    def test_what_leaves_the_sandbox_is_stopped(self, name: str) -> None:
        try:
            result = render(ESCAPES[name])
        except TokenizerError:
            return
        assert "<" not in result and "class" not in result, result

    @pytest.mark.parametrize("name", CHANGES)
    def test_what_it_is_given_cannot_be_changed(self, name: str) -> None:
        refused(CHANGES[name])

    def test_deep_nesting(self) -> None:
        refused("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}")
        refused("{% if 1 %}" * 3000 + "{% endif %}" * 3000)
        refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")

    def test_the_template_works_again_afterwards(self) -> None:
        both = ChatTemplate(
            {"default": "fine", "tool_use": ENDLESS["nested loops"]}, {}, "hostile.jinja"
        )
        messages = [{"role": "user", "content": "hi"}]
        assert both.render(messages) == "fine"
        with pytest.raises(TokenizerError, match=r"not done after 0\.3 s of processor time"):
            both.render(messages, name="tool_use")
        assert both.render(messages) == "fine"
        with pytest.raises(TokenizerError):
            ChatTemplate({"default": HUGE["a long string"]}, {}, "x").render(messages)
        assert both.render(messages) == "fine"

    def test_a_system_without_such_limits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then the parent alone watches over time and memory."""
        program = Path(template_worker.__file__).read_text()
        assert program.count("import resource") == 2
        unlimited = tmp_path / "worker.py"
        unlimited.write_text(program.replace("import resource", "raise ImportError"))
        monkeypatch.setattr(template_worker, "__file__", str(unlimited))
        assert "processor time" in refused(ENDLESS["nested loops"])
        assert "memory" in refused(HUGE["long output"])


def worker_of(template: ChatTemplate) -> psutil.Process:
    process = template._process._process
    assert process is not None
    return psutil.Process(process.pid)


MESSAGES = [{"role": "user", "content": "hi"}]


def test_text_beyond_all_bounds() -> None:
    assert len(render("{{ 'a' * 60000000 }}")) == 60_000_000
    assert "over 64 MiB" in refused("{{ 'a' * 70000000 }}")


def test_the_process_knows_no_secrets_and_can_open_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    used = template("x")
    used.render(MESSAGES)
    worker = worker_of(used)
    assert "secret" not in str(worker.environ())
    assert worker.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
    assert worker.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert worker.rlimit(psutil.RLIMIT_NPROC) == (0, 0)


def test_the_process_is_kept_and_ends_with_the_template() -> None:
    used = template("x")
    used.render(MESSAGES)
    worker = worker_of(used)
    used.render(MESSAGES)
    assert worker_of(used).pid == worker.pid
    del used
    gc.collect()
    worker.wait(10)


def test_a_process_that_was_killed_is_replaced() -> None:
    used = template("x")
    used.render(MESSAGES)
    worker_of(used).kill()
    worker_of(used).wait(10)
    assert used.render(MESSAGES) == "x"


@pytest.mark.usefixtures("short_limits")
def test_a_process_whose_parent_is_gone_ends_by_itself() -> None:
    endless = template_process.TemplateProcess()
    process = endless._running()
    assert process.stdin is not None
    source = ENDLESS["nested loops without output"]
    request = json.dumps({"source": source, "variables": {}}).encode()
    template_worker.write_message(process.stdin, request)
    process.stdin.close()
    assert process.wait(60) == -signal.SIGXCPU


def test_many_threads_share_a_template() -> None:
    used = template("{{ messages[0].content }}")
    texts = [f"message {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda text: used.render([{"role": "user", "content": text}]), texts)
        assert list(results) == texts


def test_a_system_that_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process.sys, "executable", "/nowhere/python")
    with pytest.raises(TokenizerError, match="does not start"):
        template("x").render(MESSAGES)
