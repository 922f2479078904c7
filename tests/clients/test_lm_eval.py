"""lm-eval, unmodified, scores what the model says: checked against transformers' own numbers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from client_docs import documented
from client_environments import CLIENTS, client_python
from client_programs import run_client
from serving import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = CLIENTS / "lm_eval" / "tasks"
DOCUMENTED_TASK = "--tasks arc_easy"
pytestmark = pytest.mark.large_install


class Oracle:
    """Scores of the checkpoint by transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(self, ids: Sequence[int], begin: int) -> tuple[float, bool]:
        """Of the tokens from `begin` on: their sum, and whether each is the likeliest."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0, begin - 1 : -1]
        wanted = torch.tensor(ids[begin:])
        chosen = logits.log_softmax(-1).gather(1, wanted.unsqueeze(1))
        return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())

    def continuation(self, text: str, max_tokens: int) -> str:
        """The likeliest text after `text`."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        every = self.model.generate(ids, max_new_tokens=max_tokens, do_sample=False)
        return str(self.tokenizer.decode(every[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def oracle(demo_folder: Path) -> Oracle:
    return Oracle(demo_folder)


@pytest.fixture(scope="module")
def samples(
    demo: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What lm-eval noted of each document, by task; it is run as docs/clients.md says."""
    folder = tmp_path_factory.mktemp("lm_eval")
    command = documented("lm-eval", demo.url)["sh"].strip()
    assert DOCUMENTED_TASK in command
    names = [path.stem for path in sorted(TASKS.glob("*.yaml"))]
    ours = f"--include_path {TASKS} --tasks {','.join(names)}"
    command = command.replace(DOCUMENTED_TASK, ours)
    programs = [client_python("lm_eval").parent, Path(sys.executable).parent]
    run_client(
        ["sh", "-c", f"{command} --log_samples --output_path {folder}"],
        TASKS,  # the tasks name their data from here
        PATH=os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        HF_HOME=str(folder / "home"),
        HF_HUB_OFFLINE="1",
    )
    found = {}
    for name in names:
        (file,) = folder.glob(f"*/samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def test_choices(samples: dict[str, list[dict[str, Any]]], oracle: Oracle) -> None:
    documents = samples["qwell_choice"]

    assert len(documents) == 6
    for document in documents:
        scores = []
        for request, told in zip(
            document["arguments"].values(), document["filtered_resps"], strict=True
        ):
            context, continuation = request["arg_0"], request["arg_1"]
            begin = len(oracle.tokenizer(context).input_ids)
            ids = oracle.tokenizer(context + continuation).input_ids
            logprob, is_greedy = oracle.logprobs(ids, begin)
            assert float(told[0]) == pytest.approx(logprob, abs=1e-3)
            assert told[1] == str(is_greedy)
            scores.append(logprob)
        likeliest = scores.index(max(scores))
        assert document["acc"] == float(likeliest == document["doc"]["answer"])
    # Chance is a third.
    assert sum(document["acc"] for document in documents) >= 5


def test_whole_texts(samples: dict[str, list[dict[str, Any]]], oracle: Oracle) -> None:
    documents = samples["qwell_rolling"]

    assert len(documents) == 2
    for document in documents:
        # The first token is scored behind the one that begins a text.
        ids = [oracle.tokenizer.bos_token_id, *oracle.tokenizer(document["doc"]["text"]).input_ids]
        logprob, _ = oracle.logprobs(ids, 1)
        assert float(document["filtered_resps"][0]) == pytest.approx(logprob, abs=1e-3)


def test_generated_texts(samples: dict[str, list[dict[str, Any]]], oracle: Oracle) -> None:
    documents = samples["qwell_generation"]

    assert len(documents) == 2
    for document in documents:
        request = document["arguments"]["gen_args_0"]
        text = oracle.continuation(request["arg_0"], request["arg_1"]["max_gen_toks"])
        assert document["filtered_resps"] == [text.split(".")[0]]
