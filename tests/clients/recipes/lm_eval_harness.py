"""lm-eval (EleutherAI's evaluation harness): its model `local-completions` on a task of its own."""

import json
import os
from pathlib import Path

from scenarios import API_KEY, BASE_URL, MODEL, run

os.environ["OPENAI_API_KEY"] = API_KEY
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = str(Path.home() / "datasets")

import lm_eval

END = "<end>"  # of the bundled model: text and a few characters more to others
QUESTIONS = [
    {"question": f"What is the weather today?{END}", "choices": ["It is sunny and warm.", "It is cold.", "Grüße 🌧"]},
    {"question": f"Will it rain tomorrow?{END}", "choices": ["No, it will stay dry.", "It is sunny.", "zebra"]},
]


def evaluate(samples=QUESTIONS, model=MODEL, **options):
    """Evaluate the choices of each question: context, continuation, its log-probability, whether it is greedy."""
    data = Path.home() / "questions.jsonl"
    data.write_text("".join(json.dumps({**sample, "answer": 0}) + "\n" for sample in samples), "utf-8")
    task = {
        "task": "weather",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    arguments = {
        "model": model,
        "base_url": f"{BASE_URL}/completions",
        "tokenizer": os.environ["CLIENT_TOKENIZER"],
        "tokenizer_backend": "huggingface",
        "max_retries": 1,
        **options,
    }
    found = lm_eval.simple_evaluate(
        model="local-completions", model_args=arguments, tasks=[task], log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"]["weather"], key=lambda sample: sample["doc_id"])
    return [
        [*request, float(logprob), str(greedy) == "True"]
        for sample in samples
        for request, ((logprob, greedy),) in zip(_requests(sample), sample["resps"], strict=True)
    ]


def _requests(sample):
    given = sample["arguments"]
    return [tuple(each.values()) if isinstance(each, dict) else tuple(each) for each in _values(given)]


def _values(given):
    return list(given.values()) if isinstance(given, dict) else list(given)


def scores():
    return evaluate()


def scores_batched():
    return evaluate(batch_size=4)


def unknown_model():
    return evaluate(model="no-such-model")


def wrong_key():
    os.environ["OPENAI_API_KEY"] = "sk-wrong"
    try:
        return evaluate()
    finally:
        os.environ["OPENAI_API_KEY"] = API_KEY


run(["lm-eval"], [scores, scores_batched, unknown_model, wrong_key])
