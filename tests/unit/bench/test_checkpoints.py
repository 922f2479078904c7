"""Random checkpoints of true configs: what they hold, and that the loader takes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwell.bench.checkpoints import NAMES, make_checkpoint, tensor_shapes, true_config
from qwell.cli import main
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import CheckpointError
from qwell.runtime.loader import load_model

# Parameters of the releases, in millions, from their model cards and weight files.
PARAMETERS = {"qwen3-0.6b": 596, "qwen3-8b": 8191, "qwen2.5-0.5b": 494, "qwen2.5-7b": 7616}


def small(name: str) -> dict[str, Any]:
    """The config of a release with everything but its kind made small."""
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 512,
    }
    return true_config(name) | sizes


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_true_configs_have_the_parameters_of_the_release(name: str, millions: int) -> None:
    shapes = tensor_shapes(true_config(name))
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions


def test_every_name_has_a_config() -> None:
    for name in NAMES:
        assert tensor_shapes(true_config(name))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'qwen3-9b'.*qwen3-8b"):
        true_config("qwen3-9b")


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen2.5-0.5b"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 50_000])
def test_qwell_and_transformers_load_it_alike(name: str, shard_bytes: int, tmp_path: Path) -> None:
    make_checkpoint(small(name), tmp_path, shard_bytes=shard_bytes)
    assert (shard_bytes == 50_000) == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    load_model(
        EngineOptions(model=str(tmp_path), device="cpu", weight_cache=False, kv_cache_tokens=512)
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    shards = Shards(tmp_path)
    for tensor, shape in tensor_shapes(small(name)).items():
        loaded = shards.load([tensor], torch.bfloat16, torch.device("cpu"))
        assert loaded.shape == shape
        assert torch.equal(loaded, theirs[tensor].bfloat16())


def test_weights_are_normal_and_norms_are_one(tmp_path: Path) -> None:
    make_checkpoint(small("qwen3-0.6b"), tmp_path)
    shards = Shards(tmp_path)

    def load(name: str) -> torch.Tensor:
        return shards.load([name], torch.float32, torch.device("cpu"))

    embedding = load("model.embed_tokens.weight")
    # 32768 values: five standard errors of the deviation and of the mean.
    assert abs(embedding.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * embedding.numel())
    assert abs(embedding.mean().item()) < 5 * 0.02 / math.sqrt(embedding.numel())
    assert not torch.equal(embedding[:64], load("model.layers.0.mlp.up_proj.weight")[:64])
    assert torch.equal(load("model.layers.1.self_attn.q_norm.weight"), torch.ones(128))
    assert torch.equal(load("model.norm.weight"), torch.ones(64))


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        make_checkpoint(small("qwen3-0.6b"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_command_names_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["bench", "make-checkpoint", "qwen9", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("qwell: error: there is no config for 'qwen9'")
    assert error.count("\n") == 1
    assert not folder.exists()
