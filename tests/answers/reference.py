"""Writes reference.json: the outputs in tokens of real tokenizers, and the messages that vLLM's parsers make of them.

usage: python -m tests.answers.reference SMOLLM2_FOLDER     in an environment with vLLM and mistral-common

Real tokenizers: SmolLM2's, whose texts of markers are ordinary text, and mistral-common's SentencePiece and Tekken ones
with their own special tokens. The others are SmolLM2's with the special tokens that the models' authors publish:
Qwen's, Llama 3's, Mistral's since version 11, and gpt-oss's.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.answers.outputs import MISTRAL_11, OUTPUTS, Output

FILE = Path(__file__).with_name("reference.json")
PUBLISHED = {
    "Qwen": (False, ["<tool_call>", "</tool_call>", "<think>", "</think>"]),
    "Llama 3": (True, ["<|python_tag|>", "<|eom_id|>"]),
    "Mistral 11": (True, ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"]),
    "gpt-oss": (
        True,
        ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"],
    ),
}
MODELS = {
    "hermes": ("SmolLM2", "Qwen"),
    "llama3_json": ("Llama 3",),
    "json": ("SmolLM2",),
    "mistral": ("mistral_instruct_tokenizer_240323.model.v3", "tekken_240911.json", "Mistral 11"),
    "harmony": ("gpt-oss",),
}


def released(ids: list[int], decode: Any, specials: dict[int, str]) -> list[tuple[str, int]]:
    """Each token's text and ID as a stream has them: a character's bytes are held until it is whole, a special token is
    the end of its token's text."""
    found, done, begin = [], "", 0
    for count, token_id in enumerate(ids, 1):
        if token_id in specials:
            rest = decode(ids[begin : count - 1]) if count - 1 > begin else ""
            found.append((rest[len(done) :] + specials[token_id], token_id))
            done, begin = "", count
            continue
        text = decode(ids[begin:count]).rstrip("\ufffd")
        found.append((text[len(done) :], token_id))
        done = text
    return found


def transformers_tokens(folder: str, name: str, text: str) -> tuple[list[tuple[str, int]], dict[int, str]]:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    special, tokens = PUBLISHED.get(name, (False, []))
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    specials = {vocabulary[token]: token for token in tokens if special}
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    return released(tokenizer(text, add_special_tokens=False)["input_ids"], decode, specials), specials


def mistral_tokens(name: str, text: str) -> tuple[list[tuple[str, int]], dict[int, str]]:
    import mistral_common
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    file = Path(mistral_common.__file__).parent / "data" / name
    tokenizer = MistralTokenizer.from_file(str(file)).instruct_tokenizer.tokenizer
    mark = "[TOOL_CALLS]"
    mark_id = tokenizer.get_control_token(mark) if hasattr(tokenizer, "get_control_token") else None
    mark_id = tokenizer.get_special_token(mark) if mark_id is None else mark_id
    ids: list[int] = []
    for part in re.split(f"({re.escape(mark)})", text):
        ids += [mark_id] if part == mark else tokenizer.encode(part, bos=False, eos=False)
    return released(ids, tokenizer.decode, {mark_id: mark}), {mark_id: mark}


class Vocabulary:
    """All that vLLM's parsers ask of a tokenizer for a whole text."""

    def __init__(self, tokens: list[str]) -> None:
        self._ids = {token: number for number, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def vllm_message(output: Output) -> dict[str, Any] | None:
    """What vLLM's parsers make of the whole text; None where it has none that can be used here."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
    from vllm.tool_parsers import ToolParserManager

    if output.tool_parser not in ("hermes", "llama3_json", "mistral") or output.reasoning_parser == "mistral":
        return None
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    asked = {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": [tool], "tool_choice": "auto"}
    request = ChatCompletionRequest.model_validate(asked)
    markers = [marker for _, markers in PUBLISHED.values() for marker in markers]
    if output.text not in MISTRAL_11:
        markers.remove("[ARGS]")
    vocabulary = Vocabulary([*(marker for marker in markers if "THINK" not in marker)])
    reasoning, text = None, output.text
    if output.reasoning_parser:
        reasoning, content = DeepSeekR1ReasoningParser(vocabulary).extract_reasoning(text, request)
        text = content or ""
    found = ToolParserManager.get_tool_parser(output.tool_parser)(vocabulary).extract_tool_calls(text, request)
    calls = [[call.function.name, call.function.arguments] for call in found.tool_calls]
    return {"content": found.content or "", "reasoning": reasoning or "", "calls": calls}


def main(folder: str) -> None:
    cases = []
    for output in OUTPUTS:
        message = vllm_message(output)
        for model in MODELS[output.tool_parser or ""]:
            is_11 = output.text in MISTRAL_11 or output.reasoning_parser == "mistral"
            if output.tool_parser == "mistral" and (model == "Mistral 11") != is_11:
                continue
            is_mistral_common = "tokenizer_" in model or "tekken" in model
            cut = mistral_tokens if is_mistral_common else partial(transformers_tokens, folder)
            tokens, specials = cut(model, output.text)
            cases.append({**output._asdict(), "model": model, "marks": specials, "tokens": tokens, "vllm": message})
    packages = {name: import_module(name).__version__ for name in ("mistral_common", "transformers", "vllm")}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    FILE.write_text(f'{{"packages": {json.dumps(packages)},\n"cases": [\n{lines}\n]}}\n', "utf-8")
    sys.stdout.write(f"{len(cases)} cases in {FILE}\n")


if __name__ == "__main__":
    main(sys.argv[1])
