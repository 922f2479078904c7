"""Sampling options of the command line."""

from __future__ import annotations

import argparse
from typing import Any

from qwell.runtime.sampling_params import SamplingParams

NUMBERS = {
    "temperature": (float, "T", "0 is greedy"),
    "top_p": (float, "P", "keep the likeliest tokens that reach this probability"),
    "top_k": (int, "K", "keep so many of the likeliest tokens; 0 keeps all"),
    "min_p": (float, "P", "drop tokens below this part of the likeliest one's probability"),
    "typical_p": (float, "P", "keep the tokens nearest to the entropy that reach this"),
    "repetition_penalty": (float, "F", "divides the logits of tokens seen before"),
    "presence_penalty": (float, "X", "taken off the logits of tokens generated before"),
    "frequency_penalty": (float, "X", "taken off for each time that a token was generated"),
}
"""Parameters that are an option each: type, metavar, help."""

_NAMES = (*NUMBERS, "max_tokens", "seed", "stop")


def given_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingParams that were given; the model's own defaults fill the others.

    Raises:
        RequestError: a value outside its range.
    """
    values = {name: getattr(arguments, name, None) for name in _NAMES}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    SamplingParams(**given)
    return given
