"""A small random model over bytes, and what it generates where grammars say what may come."""

from __future__ import annotations

from pathlib import Path

from checkpoints import make_checkpoint
from tiny_tokenizers import ENDOFTEXT, IM_END, tiny_backend

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.grammar import Grammar
from qwell.runtime.messages import FinishReason
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.tokenizer import Tokenizer

# More rows than the tokenizer has ids, as Qwen's models have.
VOCAB = 280
TOKENIZER = Tokenizer(tiny_backend())
PROMPT = TOKENIZER.encode("abc")
AB = Grammar("regex", "[ab]{3,5}")


def byte_model(folder: Path) -> EngineOptions:
    """Options of an engine over the model, which is made in this folder."""
    make_checkpoint(folder, "qwen3", vocab_size=VOCAB, max_position_embeddings=2048)
    tiny_backend().save(str(folder / "tokenizer.json"))
    return EngineOptions(
        model=str(folder),
        device="cpu",
        weight_cache=False,
        kv_cache_tokens=4096,
        eos_token_ids=(IM_END, ENDOFTEXT),
    )


class Answers:
    """What an engine gave, by request id."""

    def __init__(self) -> None:
        self.ids: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.errors: dict[str, str] = {}

    def text(self, name: str) -> str:
        """What it wrote."""
        return TOKENIZER.decode(self.ids[name])


def run(engine: Engine, requests: dict[str, SamplingParams]) -> Answers:
    """Requests side by side, all to their ends, which leave nothing behind."""
    answers = Answers()
    for name, params in requests.items():
        engine.add(name, [*PROMPT, len(name)], params)
    free = engine.num_free_blocks
    while engine.has_work:
        for output in engine.step():
            assert output.request_id not in answers.reasons, "a token after the end"
            answers.ids.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is not None:
                answers.reasons[output.request_id] = output.finish_reason
            if output.error is not None:
                answers.errors[output.request_id] = output.error
    assert engine.num_free_blocks == free
    return answers
