"""Checkpoint folders: what is missing, doubled, misplaced or misshapen is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import start_engine
from safetensors.torch import load_file, save_file

from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.errors import CheckpointError, UnsupportedModelError

A, B = torch.zeros(2, 3), torch.ones(4)


def write_sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], index: Any) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_indexed_shards(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    write_sharded(tmp_path, {"one.safetensors": {"a": A}, "two.safetensors": {"b": B}}, index)
    shards = Shards(tmp_path)
    shards.verify({"a": (2, 3), "b": (4,)})
    cpu = torch.device("cpu")
    assert torch.equal(shards.load(["b"], torch.float32, cpu), B)
    both = shards.load(["a", "a"], torch.bfloat16, cpu)
    assert torch.equal(both, torch.cat((A, A)).bfloat16())


@pytest.mark.parametrize(
    ("shards", "weight_map", "message"),
    [
        ({"one": {"a": A}}, {"a": "one", "b": "one"}, r"shards lack: b \(one"),
        ({"one": {"a": A, "b": B}}, {"a": "one"}, "'b', which the index places in no file"),
        ({"one": {"a": A}, "two": {"a": A}}, {"a": "one", "b": "two"}, "'a' is in both"),
        ({"one": {"a": A}}, {"a": "one", "b": "two"}, "two.safetensors does not exist"),
        ({"one": {"a": A}}, {}, "non-empty object weight_map"),
        ({"one": {"a": A}}, ["a"], "non-empty object weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(
    tmp_path: Path, shards: dict[str, Any], weight_map: Any, message: str
) -> None:
    if isinstance(weight_map, dict):
        weight_map = {name: f"{shard}.safetensors" for name, shard in weight_map.items()}
    files = {f"{name}.safetensors": tensors for name, tensors in shards.items()}
    write_sharded(tmp_path, files, {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match=message):
        Shards(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        "..\\outside.safetensors",
        "outside.bin",
        "",
        "..",
        "a\0.safetensors",
        7,
        None,
    ],
)
def test_shard_names_that_leave_the_folder_are_refused(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "outside.safetensors")
    write_sharded(folder, {}, {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match=r"shard name .* is not allowed"):
        Shards(folder)


def test_a_shard_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "outside.safetensors")
    (folder / "one.safetensors").symlink_to(tmp_path / "outside.safetensors")
    write_sharded(folder, {}, {"weight_map": {"a": "one.safetensors"}})
    with pytest.raises(CheckpointError, match="outside the folder"):
        Shards(folder)


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": A}, blobs / "0123")
    (snapshot / "one.safetensors").symlink_to("../../blobs/0123")
    write_sharded(snapshot, {}, {"weight_map": {"a": "one.safetensors"}})
    Shards(snapshot).verify({"a": (2, 3)})


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        Shards(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_that_do_not_match_the_config_are_all_named(tmp_path: Path, sharded: bool) -> None:
    make_checkpoint(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert (len(paths) > 1) == sharded
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text()) if sharded else {"weight_map": {}}
    dropped, bent = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
    for path in paths:
        tensors = load_file(path)
        if dropped in tensors:
            del tensors[dropped]
            tensors["model.layers.0.self_attn.q_proj.qweight"] = A
            index["weight_map"].pop(dropped, None)
            index["weight_map"]["model.layers.0.self_attn.q_proj.qweight"] = path.name
        if bent in tensors:
            tensors[bent] = tensors[bent].T.contiguous()
        save_file(tensors, path)
    if sharded:
        index_path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        start_engine(tmp_path)
    message = str(error.value)
    assert "missing tensors: model.norm.weight" in message
    assert "unexpected tensors: model.layers.0.self_attn.q_proj.qweight" in message
    assert f"{bent} is [64, 96], expected [96, 64]" in message


def test_a_dtype_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is F64"):
        start_engine(tmp_path)


def test_a_tied_head_may_be_stored_twice(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    start_engine(tmp_path)


def test_a_tied_head_that_is_another_matrix_is_refused(tmp_path: Path) -> None:
    """Computed with the embedding, such a checkpoint would answer nonsense without a word."""
    trained = make_checkpoint(tmp_path, tie_word_embeddings=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .* tie_word_embeddings .* false"):
        start_engine(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = trained(torch.tensor([[1, 2, 3]])).logits[0]
    assert torch.allclose(start_engine(tmp_path).logits([1, 2, 3]), expected, atol=1e-3)


PEAK = """
import sys
from pathlib import Path
import torch
from qwell.runtime.loader import load_model
from qwell.runtime.engine_options import EngineOptions

def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024

warm = torch.ones(1 << 16)  # the code of what runs below is in memory before the count starts
warm.bfloat16().max(), warm.byte().max()
options = EngineOptions(
    model=sys.argv[1],
    device="cpu",
    weight_cache=False,
    dtype=sys.argv[2],
    kv_cache_tokens=256,
)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
before = status("VmRSS")
model = load_model(options)
weights = [model.decoder.embedding, model.decoder.head]
for layer in model.decoder.layers:
    weights += [layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down]
tensors = [weight.data for weight in weights]  # of a packed one its bytes
for tensor in tensors:
    tensor.max()  # what lies in the file counts as well: read it all
size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
print((status("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_size", ["1GB", "60MB"])
def test_peak_memory_at_load(tmp_path: Path, dtype: str, max_shard_size: str) -> None:
    """At most 1.1 x the weights, whether they are packed or converted."""
    make_checkpoint(
        tmp_path,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=8000,
        max_shard_size=max_shard_size,
    )
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    ratio = float(ran.stdout)
    print(f"peak / weights = {ratio:.3f}")
    assert 0.9 < ratio <= 1.1
