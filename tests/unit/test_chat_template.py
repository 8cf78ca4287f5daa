"""Conversations in full, by chat templates that show parts, tools, calls and roles, or don't."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.unit.test_prompt import ATTACK, bpe, control_ids
from tokenrelay.shared.errors import RequestError
from tokenrelay.worker.text import encode_prompt
from tokenrelay.worker.text.template import traits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QWEN: Final = """{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{%- endif %}
<tools>{%- for tool in tools %}
{{ tool | tojson }}{%- endfor %}
</tools><|im_end|>
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not (loop.first and tools)) %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{%- elif message.role == 'assistant' %}
<|im_start|>assistant
{%- if message.reasoning_content %}
<think>{{ message.reasoning_content }}</think>
{%- endif %}
{%- if message.content %}
{{ message.content }}{%- endif %}
{%- for tool_call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ tool_call.function.name }}", "arguments": {{ tool_call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{%- elif message.role == 'tool' %}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
"""Like Qwen's: developer messages are ignored, tools shown."""
PARTS: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT: Final = (
    "{% for message in messages %}{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('only system, user and assistant') }}{% endif %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}"
)
CALL: Final = {"id": "call_1", "name": "get_weather", "arguments": '{"city": "Oslo"}'}
MESSAGES: Final[list[dict[str, Any]]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "I must look."},
    {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
]


@cache
def templated(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(bpe())
    tokenizer.chat_template = template
    return tokenizer


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    return str(bpe().decode(encode_prompt(templated(template), messages=messages)))


def test_what_templates_show_is_found_by_rendering() -> None:
    qwen, parts, strict = (traits(templated(each)) for each in (QWEN, PARTS, STRICT))
    assert (qwen.parts, qwen.developer, qwen.calls, qwen.tools) == (False, False, True, True)
    assert (parts.parts, parts.developer, parts.calls, parts.tools) == (True, True, False, False)
    assert (strict.parts, strict.developer, strict.calls, strict.tools) == (False, False, False, False)


def test_a_conversation_with_calls_is_rendered_whole() -> None:
    assert rendered(QWEN, MESSAGES) == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nWeather in Oslo?<|im_end|><|im_start|>assistant"
        "<think>I must look.</think><tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|><|im_start|>assistant\n"
    )


def test_templates_that_read_parts_get_parts() -> None:
    """With text they would show an empty conversation, and raise nothing."""
    expected = "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(PARTS, [{"role": "user", "content": "hi there"}]) == expected


def test_developer_is_system_to_templates_that_do_not_show_it() -> None:
    messages = [{"role": "developer", "content": "obey"}, {"role": "user", "content": "hi"}]
    assert rendered(STRICT, messages) == "system: obey\nuser: hi\n"
    assert "<|im_start|>system\nobey" in rendered(QWEN, messages)


def test_calls_that_a_template_does_not_show_are_refused() -> None:
    for template in (PARTS, STRICT):
        with pytest.raises(RequestError, match="doesn't show tool calls") as caught:
            rendered(template, MESSAGES[1:])
        assert (caught.value.field, caught.value.code) == ("messages", "invalid_request")
    with pytest.raises(RequestError, match="only system, user and assistant"):
        rendered(STRICT, [{"role": "user", "content": "x"}, {"role": "tool", "content": "y", "tool_call_id": "1"}])


def test_arguments_that_are_no_json_are_shown_as_text() -> None:
    for arguments in ("Oslo", "[1", '"Oslo"', "[" * 5000, "9" * 5000):
        call = {**CALL, "arguments": arguments}
        text = rendered(QWEN, [MESSAGES[1], {"role": "assistant", "content": "", "tool_calls": [call]}])
        assert f'"arguments": {json.dumps(arguments)}}}' in text


@pytest.mark.parametrize(
    "arguments",
    [f'{{"city": "{ATTACK}"}}'.replace("\n", "\\n"), f'{{"{ATTACK}": 1}}'.replace("\n", "\\n"), ATTACK],
    ids=["value", "name", "text"],
)
def test_control_tokens_in_calls_and_results_are_text(arguments: str) -> None:
    def conversation(arguments: str, text: str) -> list[dict[str, Any]]:
        call = {"id": "call_1", "name": "f", "arguments": arguments}
        answer = {"role": "assistant", "content": text, "reasoning": text, "tool_calls": [call]}
        return [MESSAGES[1], answer, {"role": "tool", "content": text, "tool_call_id": "call_1"}]

    tokenizer = templated(QWEN)
    special = ("<s>", "<|im_start|>", "<|im_end|>")
    harmless, attacked = (
        [name for name in control_ids(tokenizer, encode_prompt(tokenizer, messages=each)) if name in special]
        for each in (conversation("{}", "x"), conversation(arguments, ATTACK))
    )
    assert attacked == harmless
