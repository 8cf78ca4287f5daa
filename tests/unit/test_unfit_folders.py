"""Folders that aren't right: each is refused in one line that names the reason, whatever raises inside transformers."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.folders import VOCABULARY, tiny_config, write_folder
from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.generation_defaults import ignored_fields, request_defaults
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), tiny_config("llama"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def fields(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lose_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def keep_only(name: str) -> Change:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
        (folder / name).write_text("{}")

    return change


CONFIG, GENERATION = "config.json", "generation_config.json"
UNFIT: dict[str, tuple[Change, str]] = {
    "end token as text": (fields(CONFIG, eos_token_id="</s>"), r"config\.json isn't right: .*eos_token_id"),
    "end tokens as text": (fields(CONFIG, eos_token_id=["2", "3"]), r"config\.json isn't right: .*eos_token_id"),
    "end token as a digit": (fields(GENERATION, eos_token_id="2"), r"eos_token_id is '2'"),
    "end tokens by name": (fields(GENERATION, eos_token_id=["<end>"]), r"eos_token_id is \['<end>'\]"),
    "end token as a float": (fields(GENERATION, eos_token_id=2.0), r"eos_token_id is 2\.0"),
    "end token as a truth": (fields(GENERATION, eos_token_id=True), r"eos_token_id is True"),
    "end tokens in lists": (fields(GENERATION, eos_token_id=[[2]]), r"eos_token_id is \[\[2\]\]"),
    "broken config": (text(CONFIG, "{not json"), r"config\.json isn't right: Expecting property name"),
    "config of a list": (text(CONFIG, "[]"), r"config\.json isn't a JSON object"),
    "config without a type": (text(CONFIG, "{}"), "model_type"),
    "unknown type": (fields(CONFIG, model_type="nosuch"), r"config\.json isn't right: .*nosuch"),
    "encoder and decoder": (fields(CONFIG, model_type="t5"), "causal language model: .*T5Config"),
    "a size as text": (fields(CONFIG, hidden_size="32"), r"config\.json isn't right: .*hidden_size"),
    "no heads": (fields(CONFIG, num_attention_heads=0), r"config\.json isn't right: ZeroDivisionError"),
    "heads that don't divide": (fields(CONFIG, num_attention_heads=5), r"config\.json isn't right: .*heads"),
    "unknown activation": (fields(CONFIG, hidden_act="nosuch"), "can't be loaded as a causal .*nosuch"),
    "unknown rope": (fields(CONFIG, rope_parameters={"rope_type": "nosuch", "rope_theta": 1e4}), "nosuch"),
    "wrong shapes": (fields(CONFIG, hidden_size=64), rf"\d+ tensors .* aren't of the shape .*\({VOCABULARY}, 32\)"),
    "quantised": (fields(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "GPTQ"),
    "a vocabulary too small": (fields(CONFIG, vocab_size=100), "aren't of the shape"),
    "generation config of a list": (text(GENERATION, "[]"), r"generation_config\.json isn't a JSON object"),
    "broken generation config": (text(GENERATION, "{"), r"generation_config\.json isn't a JSON object"),
    "weights cut off": (cut_weights, "can't be loaded as a causal .*incomplete"),
    "a tensor missing": (lose_tensor, r"lack 1 of the model's tensors: lm_head\.weight"),
    "a shard missing": (lose_shard, "No such file.*model-00001"),
    "broken tokenizer": (text("tokenizer.json", "{"), "tokenizer in .* can't be loaded"),
    "another tokenizer": (text("tokenizer.json", '{"a": 1}'), "tokenizer in .* can't be loaded: KeyError"),
    "tokenizer config of a list": (text("tokenizer_config.json", "[]"), "tokenizer in .* can't be loaded"),
    "an adapter alone": (keep_only("adapter_config.json"), "PEFT adapter's: merge it"),
    "GGUF": (keep_only("model.Q4_K_M.gguf"), "GGUF files, which aren't loaded"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_folder_is_refused_in_one_line(copy: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, reason = UNFIT[kind]
    change(copy)
    with pytest.raises(ModelError) as caught:
        load_model(copy, device="cpu")
    said = str(caught.value)
    assert re.search(reason, said)
    assert "\n" not in said
    assert len(said) < 600
    assert "Traceback" not in capfd.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_config("llama", vocab_size=300))
    bundled = json.loads((weather_model_path() / "config.json").read_text("utf-8"))["vocab_size"]
    with pytest.raises(ModelError, match=f"has {bundled} tokens and the model 300: they don't belong together"):
        load_model(tmp_path, device="cpu")


def test_what_is_left_out_is_said(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields(CONFIG, num_hidden_layers=1)(copy)
    text("adapter_config.json", "{}")(copy)
    load_model(copy, device="cpu")
    assert "9 tensors" in caplog.text
    assert "PEFT adapter" in caplog.text


def test_what_the_generation_config_asks_for_and_does_not_get_is_said_once(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "num_beams": 1, "suppress_tokens": [], "max_length": 77}
    fields(GENERATION, do_sample=True, **neutral)(copy)
    load_model(copy, device="cpu")
    assert "generation_config" not in caplog.text
    asked = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "suppress_tokens": [5, 6]}
    fields(GENERATION, do_sample=True, **asked)(copy)
    load_model(copy, device="cpu")
    (said,) = [record.getMessage() for record in caplog.records if "generation_config" in record.getMessage()]
    assert said.endswith("generation_config.json: suppress_tokens=[5, 6]")


def test_a_models_own_sampling_is_the_default_of_a_request(copy: Path) -> None:
    """As vLLM takes them; a value that no request could have (top_p 7) is none."""
    asked = {"do_sample": False, "temperature": 0.6, "top_k": 20, "top_p": 7.0, "repetition_penalty": 1.1}
    fields(GENERATION, **asked)(copy)
    config = load_model(copy, device="cpu").model.generation_config
    assert request_defaults(config) == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    assert ignored_fields(config) == {"top_p": 7.0}
