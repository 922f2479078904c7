"""A model's forward pass as an engine runs it: replayed where steps are captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwell.kernels.registry import is_native
from qwell.runtime.batch import Batch
from qwell.runtime.decode_graphs import DecodeGraphs, bucket_sizes, cuda_capture
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import LoadedModel
from qwell.runtime.speculation import MOST_STEP_DRAFTS

if TYPE_CHECKING:
    from qwell.runtime.recorded_forward import RecordedForward


class Forward:
    """Logits of a batch.

    Attributes:
        captured: steps to replay: decodes on GPUs; all on CPUs, where the whole pass is native.
    """

    def __init__(self, model: LoadedModel, options: EngineOptions) -> None:
        self._model = model
        self.captured = None if options.eager else _capture(model, options)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits of the batch's logit_rows, fp32 [R, V]; valid until the next call."""
        if self.captured is not None and self.captured.serves(batch):
            return self.captured.run(batch)
        return self._model.decoder.forward(batch, self._model.cache)


@torch.inference_mode()
def _capture(model: LoadedModel, options: EngineOptions) -> DecodeGraphs | RecordedForward | None:
    if model.device.type == "cuda":
        return DecodeGraphs(
            model.decoder,
            model.cache,
            sizes=bucket_sizes(options.max_num_seqs),
            max_model_len=model.max_model_len,
            device=model.device,
            capture=cuda_capture(),
        )
    decoder = model.decoder
    # Fused ops are chosen step by step, which a recording is not.
    if model.runner is None or decoder.fused is not None or not is_native(decoder.ops):
        return None
    # Imported here: GPUs need no native code, and a checkout that is not built has none.
    from qwell.runtime.recorded_forward import RecordedForward

    max_seqs = min(options.max_num_seqs, options.max_batch_tokens)
    return RecordedForward(
        model.decoder,
        model.cache,
        model.runner,
        max_tokens=options.max_batch_tokens,
        max_seqs=max_seqs,
        max_rows=min(max_seqs + MOST_STEP_DRAFTS, options.max_batch_tokens),
        max_model_len=model.max_model_len,
    )
