"""What transformers itself says, in this process: the scores that an evaluation of texts must give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TOLERANCE: Final = 1e-3
"""Of a text's log-probability, the larger of absolute and relative: six digits a token, and another order of sums."""


def fault_of_scores(found: Sequence[Any], model: Path) -> str:
    """What is wrong with (context, continuation, log-probability, whether it is greedy) of some texts; empty if nothing
    is. Of texts that are all greedy, or none, the last says nothing."""
    expected = scores_of(model, [(context, continuation) for context, continuation, *_ in found])
    for (*texts, logprob, greedy), (own, is_greedy) in zip(found, expected, strict=True):
        if abs(logprob - own) > _TOLERANCE * max(1.0, abs(own)):
            return f"{texts}: the log-probability {logprob} is {own} by transformers"
        if greedy is not is_greedy:
            return f"{texts}: greedy is {greedy}, and {is_greedy} by transformers"
    return "" if len({greedy for _, greedy in expected}) == 2 else "the texts don't differ in being greedy"


def scores_of(model: Path, texts: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Of each continuation of a context: its log-probability, and whether each of its tokens is the likeliest."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for context, continuation in texts:
        ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        begin = len(tokenizer(context, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            rows = loaded(torch.tensor([ids])).logits[0].log_softmax(dim=-1)[begin - 1 : -1]
        own = rows.gather(1, torch.tensor(ids[begin:]).unsqueeze(1)).squeeze(1)
        found.append((float(own.sum()), bool((own == rows.max(dim=1).values).all())))
    return found
