"""Training: the same seed gives the same weights, another model can be fine-tuned, bad data is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.training.command import train_command
from tokenrelay.worker.training.conversation import Conversation, Turn
from tokenrelay.worker.training.encoding import IGNORED, Encoder
from tokenrelay.worker.training.jsonl import read_conversations, split
from tokenrelay.worker.training.report.trace import TRACE_FILE, EpochTrace, StepDone, bar, observe, read_trace
from tokenrelay.worker.training.settings import TrainingDataError, TrainingError, TrainingSettings
from tokenrelay.worker.training.tokenizer import build_tokenizer
from tokenrelay.worker.training.trainer import train
from tokenrelay.worker.training.weights import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from tokenrelay.worker.training.report.trace import TrainingTrace

_PAIRS = (
    ("Is it dry in Oslo?", "It is cold and snowy in Oslo."),
    ("Is it dry in Cairo?", "It is hot and dry in Cairo."),
    ("Is it dry in London?", "It is cool and rainy in London."),
    ("Is it dry in Paris?", "It is mild and cloudy in Paris."),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "talk.jsonl"
    lines = [{"prompt": question, "answer": answer} for question, answer in _PAIRS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def _trained(settings: TrainingSettings, out: Path) -> tuple[TrainingTrace, list[StepDone | EpochTrace]]:
    events: list[StepDone | EpochTrace] = []
    return train(settings, out=out, report=events.append), events


def test_same_seed_gives_the_same_weights(tmp_path: Path, data: Path) -> None:
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        _trained(TrainingSettings(data=data, epochs=2, seed=seed, batch_size=2), tmp_path / str(run))
        weights.append(load_file(tmp_path / str(run) / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


def test_fine_tuning_the_bundled_model_lowers_its_loss(tmp_path: Path, data: Path) -> None:
    settings = TrainingSettings(data=data, model=str(weather_model_path()), epochs=3, batch_size=2)
    trace, events = _trained(settings, tmp_path / "out")
    assert trace.epochs[-1].train_loss < trace.epochs[0].train_loss
    assert read_trace(tmp_path / "out" / "trace.json") == trace
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event for event in events if isinstance(event, EpochTrace)] == list(trace.epochs)
    _, encoder = load_model(str(tmp_path / "out"))
    assert len(encoder.prompt_ids("What is the weather today?")) == 7
    assert (tmp_path / "out" / "curve.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_model_that_is_not_there_is_named(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrainingError, match="no/such/folder"):
        _trained(TrainingSettings(data=data, model=str(tmp_path / "no/such/folder")), tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not JSON"),
        ('{"prompt": "Hi"}', "answer: Field required"),
        ('{"prompt": "Hi", "answer": ""}', "answer: String should have at least 1 character"),
        ('{"question": "Hi", "answer": "Ho"}', "prompt: Field required"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "the roles are user"),
        ('{"messages": [{"role": "bot", "content": "Hi"}]}', r"messages\.0\.role: Input should be"),
        ('{"messages": []}', "the roles are missing"),
        ("[1, 2]", "the line: Input should be"),
    ],
)
def test_malformed_line_is_named_with_what_would_be_right(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text('{"prompt": "Hi", "answer": "Hello."}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match=rf"talk\.jsonl, line 3: {reason}.*a line is ") as caught:
        read_conversations(file)
    assert '{"prompt": "…", "answer": "…"}' in caught.value.message


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.jsonl", "binary.jsonl", "missing.jsonl"):
        with pytest.raises(TrainingDataError, match=name):
            read_conversations(tmp_path / name)


def test_messages_become_turns(tmp_path: Path) -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    (conversation,) = read_conversations(file)
    assert conversation == Conversation((Turn("1", "2"), Turn("3", "4")), system="0", source=f"{file}, line 1")


def test_split_keeps_an_opening_question_on_one_side() -> None:
    conversations = tuple(Conversation((Turn(f"Question {n % 30}", f"Answer {n}"),)) for n in range(90))
    corpus = split(conversations, "here")
    learnt, held_out = ({c.questions[0] for c in part} for part in (corpus.train, corpus.held_out))
    assert not learnt & held_out
    assert len(held_out) == 3
    assert set(corpus.train) | set(corpus.held_out) == set(conversations)
    with pytest.raises(TrainingDataError, match="two different questions"):
        split(conversations[:1], "here")


def _encoder(context: int = 100) -> tuple[Encoder, Conversation]:
    conversation = Conversation(tuple(Turn(question, answer) for question, answer in _PAIRS[:2]), source="line 9")
    return Encoder(build_tokenizer([conversation] * 3, context), context), conversation


def test_only_answers_are_labelled() -> None:
    encoder, conversation = _encoder()
    (example,) = encoder.encode(conversation)
    labelled = [token for token in example["labels"] if token != IGNORED]
    text = encoder.tokenizer.decode(labelled, skip_special_tokens=False)
    assert text == "It is cold and snowy in Oslo.<end>It is hot and dry in Cairo.<end>"
    assert len(example["labels"]) == len(example["input_ids"])


def test_model_without_chat_template_takes_single_pairs_only() -> None:
    encoder, conversation = _encoder()
    encoder.tokenizer.chat_template = None
    (example,) = encoder.encode(Conversation(conversation.turns[:1]))
    text = encoder.tokenizer.decode(example["input_ids"], skip_special_tokens=False)
    assert text == "Is it dry in Oslo?<end>It is cold and snowy in Oslo.<end>"
    with pytest.raises(TrainingDataError, match="line 9: the model has no chat template"):
        encoder.encode(conversation)


def test_conversation_beyond_the_context_is_refused() -> None:
    encoder, conversation = _encoder(context=20)
    with pytest.raises(TrainingDataError, match="line 9: 32 tokens, but the model's context is 20"):
        encoder.encode(conversation)


def test_template_that_refuses_a_conversation_is_reported() -> None:
    encoder, conversation = _encoder()
    encoder.tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(TrainingDataError, match="line 9: the model's chat template refuses it: no user"):
        encoder.encode(conversation)


def test_observation_follows_the_numbers() -> None:
    assert observe(2.0, 0.5, 6.0, 0.0, 3.0).startswith("learning fast: the loss fell by 67 %, accuracy rose by 50.0")
    assert observe(1.9, 0.5, 2.0, 0.4, 1.9).startswith("slowing down")
    assert observe(2.1, 0.5, 2.0, 0.5, 1.0).startswith("unlearning: the loss rose by 0.10")
    assert observe(1.0, 0.5, 2.0, 0.4, 0.5).endswith("known questions are answered better than new ones")


def test_bar_is_as_long_as_the_loss_is_high() -> None:
    assert bar(2.3, 2.3) == "*" * 20
    assert bar(1.15, 2.3) == "*" * 10
    assert bar(0.001, 2.3) == "*"


def _run(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(train_command)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_command_shows_epochs_and_where_the_model_lies(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    code, shown = _run("--data", str(data), "--out", str(out), "--epochs", "2", "--model", str(weather_model_path()))
    assert code == 0, shown
    assert "Epoch 1 | ******************** (" in shown
    assert "Epoch 2 | *" in shown
    assert "accuracy " in shown
    assert str(out / "curve.svg") in shown


def test_command_says_what_is_wrong_with_the_data(tmp_path: Path) -> None:
    code, shown = _run("--data", str(tmp_path / "missing.jsonl"), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "missing.jsonl" in shown.replace("\n", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bundled_corpus_teaches_what_is_promised(tmp_path: Path) -> None:
    """The whole training, as `make train` runs it. Its time is the machine's, and asserted nowhere."""
    code, shown = _run("--out", str(tmp_path))
    assert code == 0, shown
    trace = read_trace(tmp_path / TRACE_FILE)
    losses, accuracies = [e.loss for e in trace.epochs], [e.accuracy for e in trace.epochs]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert accuracies == sorted(accuracies)
    assert losses[0] > 1.5
    assert losses[-1] <= 0.5
    assert accuracies[-1] >= 0.80
    assert trace.epochs[-1].answer == "It is sunny and warm."
    for epoch in trace.epochs:
        assert f"Epoch {epoch.epoch} | {bar(epoch.loss, losses[0])} ({epoch.loss:.1f})" in shown
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) <= 2e6
