"""POST /tokenize and POST /detokenize."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request

from qwell.runtime.tokenizer import Tokenizer
from qwell.server.json_body import JsonResponse, read_json
from qwell.server.protocol.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    check_in_vocabulary,
)
from qwell.server.service import Service

_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(service: Service, request: Request) -> JsonResponse:
    """The token ids of a text."""
    info = service.engine.ready_info()
    body = await read_json(request, _tokenize_decoder, service.max_body_bytes)
    if body.model is not None:
        service.check_model(body.model)
    tokenizer = service.text.tokenizer
    encode = tokenizer.encode if body.add_special_tokens is False else tokenizer.encode_prompt
    tokens = await asyncio.to_thread(encode, body.prompt)
    strings = None
    if body.return_token_strs:
        strings = await asyncio.to_thread(_strings, tokenizer, tokens)
    return JsonResponse(
        TokenizeAnswer(
            count=len(tokens),
            max_model_len=info.max_model_len,
            tokens=tokens,
            token_strs=strings,
        )
    )


async def detokenize(service: Service, request: Request) -> JsonResponse:
    """The text of token ids."""
    body = await read_json(request, _detokenize_decoder, service.max_body_bytes)
    if body.model is not None:
        service.check_model(body.model)
    tokenizer = service.text.tokenizer
    await asyncio.to_thread(check_in_vocabulary, body.tokens, tokenizer.vocab_size)
    text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=False)
    return JsonResponse(DetokenizeAnswer(text))


def _strings(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    return [tokenizer.decode([token_id], skip_special=False) for token_id in tokens]
