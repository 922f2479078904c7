"""`qwell generate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from qwell.cli.model_options import engine_options
from qwell.cli.sampling import given_sampling
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.llm import LLM

DEFAULT_MAX_TOKENS = 256


def run(arguments: argparse.Namespace) -> int:
    """Print the completion as it comes, or one JSON object at the end."""
    llm = LLM.from_options(engine_options(arguments, str(resolve_model(arguments.model))))
    prompt = llm.tokenizer.encode_prompt(arguments.prompt)
    # A default must not fail where the context is short; what the user asked for may.
    room = max(1, llm.info.max_model_len - len(prompt))
    params = replace(llm.default_params(), max_tokens=min(DEFAULT_MAX_TOKENS, room))
    params = replace(params, **given_sampling(arguments))
    (completion,) = llm.generate([prompt], params, on_text=None if arguments.json else _show)
    if not arguments.json:
        print()
        return 0
    result = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(completion.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
    }
    print(json.dumps(result, ensure_ascii=False))
    return 0


def _show(_: int, text: str) -> None:
    print(text, end="", flush=True)
