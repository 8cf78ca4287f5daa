"""Tools: what a request may offer, the grammars of its calls, and how a model's format is recognised."""

from __future__ import annotations

import copy
import json
from typing import Any, Final, cast

import pytest

from tests.unit.test_chat_template import PARTS, QWEN, STRICT, templated
from tests.unit.test_prompt import ATTACK, bpe
from tokenrelay.shared.answers.deltas import message_of
from tokenrelay.shared.answers.parser import AnswerParser, Formats
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import Limits, Submission, body_sha256, dump, load, resolve, validate, wire_of
from tokenrelay.worker.sampling.grammar.calls import FORMATS, calls_grammar
from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.library import bind, compile_grammar, to_source
from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary
from tokenrelay.worker.text import EndRules, Rendering, TokenText, encode_prompt
from tokenrelay.worker.text.template import tool_parser_of

LIMITS: Final = Limits(max_prompt_chars=1_000, max_new_tokens=100)
ASKED: Final[list[Any]] = [{"role": "user", "content": "x"}]
INTEGER: Final = {"a": {"type": "integer"}}
SCHEMA: Final = {"type": "object", "properties": INTEGER, "required": ["a"], "additionalProperties": False}
FUNCTION: Final[dict[str, Any]] = {"name": "f", "description": "It.", "parameters": SCHEMA}
TOOL: Final[dict[str, Any]] = {"type": "function", "function": FUNCTION}
CALL: Final = {"id": "1", "name": "f", "arguments": "{}"}


def validated(**given: Any) -> Submission:
    return validate({"messages": ASKED, **given}, LIMITS)


def test_openais_shapes_are_stored_as_ours() -> None:
    flat = {"name": "f", "description": "It.", "parameters": json.dumps(SCHEMA)}
    for tool in (TOOL, {"type": "function", **FUNCTION}, FUNCTION, flat, {**flat, "strict": None}):
        request = validated(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})
        assert request["tools"] == [flat]
        assert request["tool_choice"] == {"name": "f"}
    for named in ({"type": "function", "name": "f"}, {"name": "f"}):
        assert validated(tools=[TOOL], tool_choice=named)["tool_choice"] == {"name": "f"}


def test_a_request_with_tools_is_of_version_2_and_one_without_as_before() -> None:
    plain, neutral = validated(), validated(tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert plain == neutral
    assert body_sha256(plain, LIMITS) == body_sha256(neutral, LIMITS)
    calling = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    changed: list[dict[str, Any]] = [
        {"tools": [TOOL]},
        {"messages": calling},
        {"messages": [{**ASKED[0], "name": "me"}]},
    ]
    for given in changed:
        later = validated(**given)
        stored = {**resolve(later, (), {}), "seed": 1, "max_new_tokens": 5}
        assert wire_of(cast("Submission", stored)) == 2
        assert load(dump(cast("Submission", stored)), 2)["messages"] == later["messages"]
        of_version_1 = {**resolve(plain, (), {}), **{name: stored[name] for name in given}}
        with pytest.raises(RequestError, match="wire version 1"):
            load(dump(cast("Submission", of_version_1)))


BAD: Final[list[tuple[dict[str, Any], str]]] = [
    ({"tools": [TOOL, TOOL]}, "tools: has the name f twice"),
    ({"tools": [{"name": "a b"}]}, "tools.0.name: "),
    ({"tools": [{"name": "a" * 65}]}, "tools.0.name: "),
    ({"tools": [{"description": "x"}]}, "tools.0.name: "),
    ({"tools": [{"name": f"f{number}"} for number in range(129)]}, "tools: .*at most 128"),
    ({"tools": [{"name": "f", "parameters": {"description": "x" * 262_144}}]}, "262144 are allowed"),
    ({"tools": [{"name": "f", "parameters": "{"}]}, "tools.0.parameters: holds a schema that isn't JSON"),
    ({"tools": [{"name": "f", "parameters": "[1]"}]}, "tools.0.parameters: holds a schema that isn't a JSON object"),
    ({"tools": [{"name": "f", "parameters": {"type": "array"}}]}, "must be the schema of an object"),
    ({"tools": [{"name": "f", "parameters": {"$ref": "http://x/y"}}]}, "refers to another document"),
    ({"tools": [{"name": "f", "arguments": {}}]}, "tools.0.arguments: unknown field; .* known ones are description"),
    ({"tools": [{"type": "web_search"}]}, "tools.0: is of type 'web_search'; only functions"),
    ({"tools": ["f"]}, "tools.0: "),
    ({"tool_choice": "required"}, "tool_choice: needs tools"),
    ({"tool_choice": {"name": "f"}}, "tool_choice: needs tools"),
    ({"tools": [TOOL], "tool_choice": {"name": "g"}}, "tool_choice: no tool has the name 'g'"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice: must be auto, none, required, or"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: must be auto, none, required, or"),
    ({"tools": [TOOL], "ignore_eos": True}, "ignore_eos: not beside tools"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format: not beside tools"),
    ({"tools": [TOOL], "messages": None, "prompt": "x"}, "tools: needs messages"),
    ({"messages": [*ASKED, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "no earlier message has the call"),
    ({"messages": [*ASKED, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id: is missing"),
    ({"messages": [*ASKED, {"role": "user", "content": "x", "tool_call_id": "1"}]}, "tool_call_id: is a field"),
    ({"messages": [*ASKED, {"role": "user", "content": "x", "tool_calls": [CALL]}]}, "with role assistant"),
    ({"messages": [*ASKED, {"role": "assistant", "content": None}]}, "messages.1.content: is null"),
    ({"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": []}]}, "messages.1.tool_calls: "),
    ({"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL] * 129}]}, "at most 128"),
    ({"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [{**CALL, "arguments": "x" * 1_000}]}]},
     "the prompt is too long: 1003 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "words"), BAD, ids=lambda value: value[:60] if isinstance(value, str) else "")
def test_bad_input_says_what_and_where(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        validated(**given)


BYTES: Final = bind(Vocabulary((*(bytes([each]) for each in range(256)), b""), (256,)))
WRITTEN: Final = {
    "hermes": ('<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call>', "\n"),
    "json": ('{"name": "f", "arguments": {"a":1}}', "\n"),
    "llama3_json": ('{"name": "f", "parameters": {"a":1}}', "; "),
}
"""A call, and what stands between two."""


def fits(options: dict[str, Any], tool_parser: str, text: str) -> bool:
    """Whether the text is a whole answer under the grammar of the calls; anything is, without one."""
    asked = {"tools": [FUNCTION | {"parameters": json.dumps(SCHEMA)}], "tool_choice": "auto"}
    grammar = calls_grammar({**asked, "parallel_tool_calls": True, **options}, tool_parser)
    if grammar is None:
        return True
    matcher = compile_grammar(BYTES, to_source(grammar), grammar.kind)
    return all(matcher.consume_token(byte) for byte in text.encode()) and bool(matcher.is_accepting())


@pytest.mark.parametrize("tool_parser", sorted(FORMATS))
def test_grammars_of_calls(tool_parser: str) -> None:
    call, between = WRITTEN[tool_parser]
    wrong, unknown = call.replace("1", '"1"'), call.replace('"f"', '"g"')
    required: dict[str, Any] = {"tool_choice": "required"}
    for options in (required, {"tool_choice": {"name": "f"}}, {**required, "parallel_tool_calls": False}):
        assert fits(options, tool_parser, call)
        assert fits(options, tool_parser, call + between + call) == (options == required)
        assert not any(fits(options, tool_parser, text) for text in ("", "Hi", f"Hi {call}", wrong, unknown))
    strict = {"tools": [{"name": "f", "parameters": json.dumps(SCHEMA), "strict": True}]}
    for options in (strict, {"parallel_tool_calls": False}):
        assert fits(options, tool_parser, call)
        assert fits(options, tool_parser, call + between + call) == (options == strict)
        assert not any(fits(options, tool_parser, text) for text in (wrong, unknown))
        assert all(fits(options, tool_parser, text) for text in ("", "Hi", "a < b, <tool> and <tool_cal"))
    free = {"tools": [{"name": "f"}], "tool_choice": "auto", "parallel_tool_calls": True}
    assert calls_grammar(free, tool_parser) is None


@pytest.mark.parametrize("tool_parser", sorted(FORMATS))
def test_what_a_grammar_of_calls_writes_its_parser_reads(tool_parser: str) -> None:
    call, between = WRITTEN[tool_parser]
    parser = AnswerParser("A" * 22, Formats(tool_parser))
    said = message_of([*parser.push(1, call + between + call), *parser.finish()])
    assert [(each.name, each.arguments) for each in said.tool_calls] == [("f", '{"a":1}')] * 2
    assert said.content == ""


def test_a_strict_tool_whose_schema_cannot_be_enforced_is_invalid() -> None:
    odd = json.dumps({"type": "object", "dependentSchemas": {"a": {}}})
    tools = [{"name": "f", "parameters": odd, "strict": True}]
    grammar = calls_grammar({"tools": tools, "tool_choice": "auto", "parallel_tool_calls": True}, "hermes")
    assert grammar is not None
    assert grammar.field == "tools"
    with pytest.raises(GrammarError):
        compile_grammar(BYTES, to_source(grammar), grammar.kind)
    lenient = calls_grammar(
        {"tools": [{**tools[0], "strict": False}], "tool_choice": "required", "parallel_tool_calls": True}, "hermes"
    )
    assert lenient is not None
    compile_grammar(BYTES, to_source(lenient), lenient.kind)


SHOWN: Final = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "tool_parser"),
    [
        (QWEN, "hermes"),
        (PARTS, None),
        (STRICT, None),
        (SHOWN, "json"),
        (SHOWN + "{% if false %}[TOOL_CALLS]{% endif %}", "mistral"),
        (SHOWN + "{% if false %}<|python_tag|>{% endif %}", "llama3_json"),
        (SHOWN + "{% if false %}<|channel|>{% endif %}", "harmony"),
        (SHOWN + "{% if false %}<tool_call><function=f>{% endif %}", None),
    ],
)
def test_the_format_of_calls_is_recognised_by_the_template(template: str, tool_parser: str | None) -> None:
    assert tool_parser_of(templated(template)) == tool_parser


def test_tools_are_shown_by_the_template_and_refused_by_one_without() -> None:
    tools = [{"name": "f", "description": "It.", "parameters": json.dumps(SCHEMA)}]
    text = str(bpe().decode(encode_prompt(templated(QWEN), messages=ASKED, rendering=Rendering(tools=tools))))
    assert json.dumps({"type": "function", "function": {**tools[0], "parameters": SCHEMA}}) in text
    with pytest.raises(RequestError, match="tools: this model's chat template doesn't show tools"):
        encode_prompt(templated(STRICT), messages=ASKED, rendering=Rendering(tools=tools))


def test_control_tokens_in_tools_are_text_and_in_their_names_refused() -> None:
    tools = [{"name": "f", "description": ATTACK, "parameters": json.dumps({"type": "object", "title": ATTACK})}]
    ids = encode_prompt(templated(QWEN), messages=ASKED, rendering=Rendering(tools=tools))
    plain = encode_prompt(templated(QWEN), messages=ASKED, rendering=Rendering(tools=[{"name": "f"}]))
    end = bpe().get_vocab()["<|im_end|>"]
    assert ids.count(end) == plain.count(end)
    named = [{"name": "f", "parameters": json.dumps({"type": "object", "properties": {"<|im_end|>": {}}})}]
    shown = "{{ tool.function.name }}{{ tool.function.parameters }}"
    printed = "{% for tool in tools or [] %}" + shown + "{% endfor %}{{ messages[0].content }}"
    for template, forged in (
        (QWEN, named),
        (printed, tools),
    ):  # Python's own text of an object escapes what guards a token
        with pytest.raises(RequestError, match="a control token within tools or calls") as refused:
            encode_prompt(templated(template), messages=ASKED, rendering=Rendering(tools=forged))
        assert (refused.value.field, refused.value.code) == ("messages", "control_token")
    harmless = [{"name": "f", "parameters": json.dumps({"type": "object", "properties": {"end": {}}})}]
    assert encode_prompt(templated(printed), messages=ASKED, rendering=Rendering(tools=harmless))


def test_marks_are_the_end_of_their_tokens_text() -> None:
    """Held characters and stop strings come out before a mark; nothing goes on through it."""
    tokenizer = copy.deepcopy(bpe())
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert isinstance(mark, int)
    half, other = tokenizer.encode("é", add_special_tokens=False)[:2]
    held = tokenizer.encode("st", add_special_tokens=False)
    marks = {mark: "<|im_start|>"}
    text = TokenText(tokenizer, EndRules(stop=("stop",), marks=marks))
    released = [text.push(each).text for each in (*held, mark, half, mark, half, other)]
    assert "".join(released) == "st<|im_start|>\ufffd<|im_start|>é"
    assert [piece for piece in released if piece.endswith("<|im_start|>")] == ["st<|im_start|>", "\ufffd<|im_start|>"]
    again = TokenText(tokenizer, EndRules(stop=("stop",), marks=marks))
    assert [each.text for each in again.replay((*held, mark, half, mark, half, other))] == released
    without = TokenText(tokenizer, EndRules())
    assert "".join(without.push(each).text for each in (*held, mark)) == "st"
