"""A model's forward pass as an engine runs it: replayed where steps are captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwell.kernels.registry import is_native
from qwell.runtime.batch import Layout
from qwell.runtime.decode_graphs import DecodeGraphs, bucket_sizes, cuda_capture
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import LoadedModel
from qwell.runtime.recorded_draw import RecordedDraw
from qwell.runtime.speculation import MOST_STEP_DRAFTS

if TYPE_CHECKING:
    from qwell.runtime.recorded_forward import RecordedForward


class Forward:
    """Logits of a step.

    Attributes:
        recorded: replays all steps, on CPUs where the whole pass is native.
        graphs: replay decodes, on GPUs.
        draw: replays draws from the logits of what is recorded, where that op is native too.
    """

    def __init__(self, model: LoadedModel, options: EngineOptions) -> None:
        self._model = model
        self.recorded = None if options.eager else _recorded(model, options)
        self.graphs = None if options.eager else _graphs(model, options)
        self.draw = None if self.recorded is None else _draw(model, self.recorded)

    def __call__(self, layout: Layout) -> Tensor:
        """Logits of the layout's logit_rows, fp32 [R, V]; valid until the next call."""
        if self.recorded is not None and self.recorded.serves(layout):
            return self.recorded.run(layout)
        return self._of_batch(layout)

    @torch.inference_mode()
    def _of_batch(self, layout: Layout) -> Tensor:
        batch = layout.to_device(self._model.device)
        if self.graphs is not None and self.graphs.serves(batch):
            return self.graphs.run(batch)
        return self._model.decoder.forward(batch, self._model.cache)


@torch.inference_mode()
def _graphs(model: LoadedModel, options: EngineOptions) -> DecodeGraphs | None:
    if model.device.type != "cuda":
        return None
    return DecodeGraphs(
        model.decoder,
        model.cache,
        sizes=bucket_sizes(options.max_num_seqs),
        max_model_len=model.max_model_len,
        device=model.device,
        capture=cuda_capture(),
    )


@torch.inference_mode()
def _recorded(model: LoadedModel, options: EngineOptions) -> RecordedForward | None:
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


@torch.inference_mode()
def _draw(model: LoadedModel, recorded: RecordedForward) -> RecordedDraw | None:
    sample = model.decoder.ops.sample
    if model.runner is None or not is_native(model.decoder.ops, ["sample"]):
        return None
    return RecordedDraw(sample, model.runner, recorded.replay)
