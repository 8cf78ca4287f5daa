"""Loading: what a folder must have, what is read from it, and what makes two models different ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.families.folders import CONTEXT, tiny_config, write_folder
from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.host_memory import free_host_bytes
from tokenrelay.worker.engine.model_files.fingerprint import fingerprint_folder
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings, bytes_per_token, plan_cache
from tokenrelay.worker.engine.transformers.layers.linear import PackedLinear
from tokenrelay.worker.engine.transformers.models import load_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [3, 4]
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "hi": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_model_is_loaded_with_what_an_engine_must_know(folder: Path) -> None:
    loaded = load_model(folder, device="cpu", dtype="auto")
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert loaded.context_tokens == 64
    assert loaded.eos_token_ids == {1, 3, 4}  # tokenizer, config and generation config
    assert not loaded.model.training
    packed = [module for module in loaded.model.modules() if isinstance(module, PackedLinear)]
    assert bool(packed) == torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    assert load_model(str(folder), device="cpu", dtype="float64").model.dtype == torch.float64


def test_fingerprint_tells_models_apart_and_not_their_place(folder: Path, copy: Path) -> None:
    fingerprint = fingerprint_folder(folder, "torch.float32")
    assert load_model(copy, device="cpu", dtype="float32").fingerprint == fingerprint
    assert fingerprint_folder(copy, "torch.bfloat16") != fingerprint
    (copy / "README.md").write_text("not the model's")
    assert fingerprint_folder(copy, "torch.float32") == fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint_folder(copy, "torch.float32") != fingerprint


def test_fingerprint_of_large_files_samples_them(tmp_path: Path) -> None:
    large = tmp_path / "model.safetensors"
    with large.open("wb") as file:
        file.truncate(80 << 20)
    fingerprint = fingerprint_folder(tmp_path, "")
    with large.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint_folder(tmp_path, "") != fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no model folder /no/such/folder"),
        ("./no-such-folder", "there is no model folder ./no-such-folder"),
        ("a/b/c", "there is no model folder a/b/c"),
        ("not a name", "neither a folder nor a Hub name"),
    ],
)
def test_unknown_folder(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name, device="cpu")


def test_hub_name_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="the Hugging Face Hub doesn't give it"):
        load_model("nobody/has-this-model", device="cpu")


def test_folder_without_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(copy, device="cpu")


def test_folder_without_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors, only pytorch_model\.bin"):
        load_model(copy, device="cpu")


def test_folder_with_broken_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(copy, device="cpu")


def test_folder_with_weights_missing(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lack \d+ of the model's tensors: model\.layers\.2\."):
        load_model(copy, device="cpu")


def test_folder_without_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load_model(copy, device="cpu")


def test_folder_of_another_kind_of_model(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(ModelError, match="causal language model"):
        load_model(copy, device="cpu")


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({**LONG, "original_max_position_embeddings": 64}, 64),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, CONTEXT),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}, CONTEXT),
    ],
    ids=["longrope", "dynamic", "yarn"],
)
def test_context_ends_where_factors_begin_to_depend_on_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rope: dict[str, Any], context: int
) -> None:
    write_folder(tmp_path, tiny_config("llama", rope_parameters=rope))
    assert load_model(tmp_path, device="cpu", dtype="float64").context_tokens == context
    assert ("cut from 256 to 64 tokens" in caplog.text) == (context < CONTEXT)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("gpu", "auto", "no device 'gpu'"),
        ("cuda:99", "auto", "device 'cuda:99' isn't there"),
        ("cpu", "int8", "no dtype 'int8'"),
    ],
)
def test_unknown_device_or_dtype(folder: Path, device: str, dtype: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(folder, device=device, dtype=dtype)


def test_cache_is_sized_from_slots_memory_or_settings(folder: Path) -> None:
    loaded = load_model(folder, device="cpu", dtype="float32")
    assert plan_cache(loaded, EngineSettings(slots=4), free_bytes=1 << 30).tokens == 4 * 64
    assert plan_cache(loaded, EngineSettings(slots=4, kv_cache_tokens=100), free_bytes=1 << 30).tokens == 128
    long = replace(loaded, context_tokens=100_000)
    assert plan_cache(long, EngineSettings(slots=4), free_bytes=1 << 40).tokens == 4 * 100_000
    per_token = bytes_per_token(loaded, batch_tokens=512)
    assert per_token == (2 * 2 * 4 * 2 + 512 + 2 * 16) * 4
    # A quarter of the memory, less the manager's own two pages of 32 tokens; 60 % where the operator says how much.
    free_bytes = per_token * (320 + 64) * 4
    assert plan_cache(loaded, EngineSettings(slots=400), free_bytes=free_bytes).tokens == 320
    assert plan_cache(loaded, EngineSettings(slots=400, kv_cache_tokens=800), free_bytes=free_bytes).tokens == 800
    wide = replace(loaded, dtype=torch.float64)
    assert plan_cache(wide, EngineSettings(slots=400), free_bytes=free_bytes).tokens == 128


MIB = 1 << 20


def kernel(folder: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    """What Linux shows: /sys/fs/cgroup, and /proc/self/cgroup. `files` are named by their paths below the first."""
    for name, content in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    membership = folder / "membership"
    membership.write_text(cgroup)
    return folder / "cgroup", membership


def group(at: str, limit: str, used: int, *, v1: bool = False) -> dict[str, str]:
    names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if v1 else ("max", "current", "inactive_file")
    return {
        f"{at}memory.{names[0]}": limit,
        f"{at}memory.{names[1]}": str(used),
        f"{at}memory.stat": f"anon 5\n{names[2]} {MIB}\n",
    }


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param("0::/\n", group("", str(6 * MIB), 3 * MIB), 4 * MIB, id="a container's own root"),
        pytest.param("0::/a/b\n", group("a/b/", str(5 * MIB), 2 * MIB), 4 * MIB, id="a service's group"),
        pytest.param(
            "0::/a/b\n", group("a/b/", "max", 0) | group("a/", str(3 * MIB), 2 * MIB), 2 * MIB, id="the group above"
        ),
        pytest.param("0::/host/path\n", group("", str(2 * MIB), MIB), 2 * MIB, id="the host's path in a container"),
        pytest.param("0::/\n", group("", str(MIB), 3 * MIB), 0, id="over its limit"),
        pytest.param(
            "4:cpu,memory:/job\n0::/\n", group("memory/job/", str(4 * MIB), MIB, v1=True), 4 * MIB, id="version 1"
        ),
    ],
)
def test_free_memory_respects_control_groups(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    """The limits are of a few MiB, which every machine has: psutil's figure would show at once."""
    assert free_host_bytes(*kernel(tmp_path, cgroup, files)) == expected


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        pytest.param("0::/\n", {}, id="no groups"),
        pytest.param("0::/\n", group("", "max", 3 * MIB), id="version 2"),
        pytest.param("4:memory:/job\n", group("memory/job/", str(2**63 - 4096), MIB, v1=True), id="version 1"),
    ],
)
def test_without_a_limit_free_memory_is_the_machines(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert 6 * MIB < free_host_bytes(*kernel(tmp_path, cgroup, files)) <= psutil.virtual_memory().total
    assert free_host_bytes(tmp_path / "none", tmp_path / "none") > 6 * MIB, "another system than Linux"


def test_cache_that_does_not_fit_names_the_numbers(folder: Path) -> None:
    loaded = load_model(folder, device="cpu", dtype="float32")
    with pytest.raises(ModelError, match=r"not enough memory for the KV cache: 1000 tokens need 2 MiB at 2304 bytes"):
        plan_cache(loaded, EngineSettings(kv_cache_tokens=1000), free_bytes=1 << 20)
    with pytest.raises(ModelError, match="not enough memory for the KV cache: 32 tokens"):
        plan_cache(loaded, EngineSettings(), free_bytes=0)


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_folder_with_a_sentencepiece_model_alone(tmp_path: Path, model_type: str, named: bool) -> None:
    """As Llama 2's and Mistral 0.1's first folders were; bytes stand for what the vocabulary lacks."""
    write_folder(tmp_path, tiny_config(model_type))
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    sentences = [f"the weather in city {number} is fine and the wind is {number % 9}" for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    if named:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    tokenizer = load_model(tmp_path, device="cpu").tokenizer
    for text in ("the weather is fine", "wind: 7 ☂"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
