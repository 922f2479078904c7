"""Sampling options of the command line."""

from __future__ import annotations

import argparse
from typing import Any

from qwell.runtime.sampling_params import SamplingParams

_NAMES = ("max_tokens", "temperature", "seed", "stop")


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
