"""LLM: a model in this process, from a folder to texts, token ids and logits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from tiny_tokenizers import ENDOFTEXT, IM_END, backend_with_beginning, tiny_backend
from transformers import PreTrainedTokenizerFast

from qwell import LLM, SamplingParams
from qwell.runtime.errors import CheckpointError, EngineStartError, RequestError

GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
PROMPTS = ["Once upon", "a time", "in a land far away there was"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    backend = tiny_backend()
    make_checkpoint(path, "qwen3", vocab_size=backend.get_vocab_size() + 5)
    backend.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, device="cpu", weight_cache=False)


def test_texts_and_ids_are_the_same_prompt(llm: LLM) -> None:
    texts = llm.generate(PROMPTS, GREEDY)
    ids = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert llm.generate(ids, GREEDY) == texts
    assert [completion.prompt_token_ids for completion in texts] == ids


def test_a_text_begins_as_transformers_has_it_and_a_chat_as_its_template(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    backend_with_beginning().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    begins = LLM(tmp_path, device="cpu", weight_cache=False)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    (completion,) = begins.generate(["Once"], GREEDY)
    assert completion.prompt_token_ids == theirs("Once").input_ids == [ENDOFTEXT, *b"Once"]
    assert begins.chat_template is not None
    messages = [{"role": "user", "content": "Once"}]
    assert begins.chat_template.encode(messages, begins.tokenizer) == [*b"Once"]


def test_calls_from_threads_take_turns(llm: LLM) -> None:
    alone = [llm.generate([prompt], GREEDY) for prompt in PROMPTS]
    logits = llm.logits([1, 2, 3])
    with ThreadPoolExecutor(8) as threads:
        texts = [threads.submit(llm.generate, [prompt], GREEDY) for prompt in PROMPTS * 4]
        between = [threads.submit(llm.logits, [1, 2, 3]) for _ in range(8)]
        assert [call.result() for call in texts] == alone * 4
        assert all(torch.equal(call.result(), logits) for call in between)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "device is 'tpu'; it must be one of auto, cpu, cuda"),
        ({"weights": "q4_0"}, "weights is 'q4_0'; it must be one of auto, f32"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of auto, bfloat16"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'; it must be one of auto"),
        ({"max_model_len": 0}, "max_model_len is 0; it must be at least 1"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0; it must be at least 1"),
        ({"max_num_seqs": -1}, "max_num_seqs is -1; it must be at least 1"),
    ],
)
def test_an_option_that_no_engine_runs_with_is_refused(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineStartError, match=re.escape(words)):
        LLM(folder, **options)


def test_the_text_is_that_of_the_ids_and_comes_in_pieces(llm: LLM) -> None:
    pieces: dict[int, str] = {}

    def on_text(index: int, piece: str) -> None:
        assert piece
        pieces[index] = pieces.get(index, "") + piece

    completions = llm.generate(PROMPTS, GREEDY, on_text=on_text)
    for index, completion in enumerate(completions):
        assert completion.text == llm.tokenizer.decode(completion.token_ids)
        assert completion.text == pieces.get(index, "")
        ended = IM_END in completion.token_ids
        assert completion.finish_reason == ("stop" if ended else "length")


def test_progress_is_said_on_stderr_if_wanted(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = llm.generate(PROMPTS, GREEDY)
    assert capsys.readouterr().err == ""
    assert llm.generate(PROMPTS, GREEDY, progress=True) == quiet
    assert capsys.readouterr().err.startswith("100% of 3 requests")


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[:1], GREEDY)
    stop = whole.text[3:5]
    cut = SamplingParams(max_tokens=24, temperature=0.0, stop=(stop,))
    (stopped,) = llm.generate(PROMPTS[:1], cut)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(whole.token_ids)


def test_logits_are_fp32_of_every_position(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[2])
    logits = llm.logits(ids)
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (len(ids), llm.info.vocab_size))
    (completion,) = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0.0))
    assert completion.token_ids == [int(logits[-1].argmax())]


def test_a_prompt_that_cannot_be_served_leaves_nothing_behind(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, GREEDY)
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.generate([*PROMPTS, ""], GREEDY)
    assert llm.generate(PROMPTS, GREEDY) == expected


def test_an_interrupted_call_leaves_nothing_behind(llm: LLM) -> None:
    expected = llm.generate(PROMPTS, GREEDY)

    def interrupt(_index: int, _piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY, on_text=interrupt)
    assert llm.generate(PROMPTS, GREEDY) == expected


def test_one_string_is_not_taken_for_a_list_of_prompts(llm: LLM) -> None:
    with pytest.raises(TypeError, match=r"pass \[prompt\]"):
        llm.generate("Once", GREEDY)


def test_the_checkpoints_own_sampling_defaults(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": 7})
    )
    llm = LLM(tmp_path, device="cpu", weight_cache=False)
    assert llm.default_params() == SamplingParams(temperature=0.6, top_k=20)
    assert 7 in llm.defaults.eos_token_ids


def test_a_checkpoint_without_tokenizer_still_has_logits(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    llm = LLM(tmp_path, device="cpu", weight_cache=False)
    assert llm.logits([1, 2, 3]).shape == (3, 199)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        llm.generate(["text"])


def test_importing_the_package_brings_no_torch() -> None:
    code = "import sys, qwell; qwell.SamplingParams(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
