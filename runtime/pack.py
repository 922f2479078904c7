"""Packs a checkpoint's weights ahead of the first start that serves them."""

from __future__ import annotations

from pathlib import Path

import torch

from qwell.runtime.checkpoint.packed_cache import PackedFile
from qwell.runtime.checkpoint.packed_files import packed_dir
from qwell.runtime.checkpoint.packed_weights import PackedWeights
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.engine_options import Weights
from qwell.runtime.models.dense import matrix_formats, verify_dense
from qwell.runtime.models.registry import read_model_config
from qwell.runtime.precision import weight_format


@torch.inference_mode()
def pack_checkpoint(folder: Path, weights: Weights) -> Path:
    """Make the file of packed weights that load_model maps on a CPU, unless it is there.

    Raises:
        CheckpointError, UnsupportedModelError, EngineStartError: as load_model.
        OSError: the file cannot be kept where it belongs.
    """
    family, config = read_model_config(folder)
    shards = Shards(folder)
    verify_dense(shards, family.names, config)
    format_name = weight_format(weights, config.dtype)
    formats = matrix_formats(family.names, config, format_name)
    file = PackedFile(packed_dir(), shards, format_name, formats)
    PackedWeights(shards, formats).keep_in(file)
    return file.path
