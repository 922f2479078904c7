"""A process with one engine: says when its first token is there, then runs cases.

Reads a case a line, answers with a lap a line, and ends with its input.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from qwell.bench.model.cases import Case
from qwell.bench.model.messages import Answer, Failed, Lap, Started
from qwell.bench.model.steps import demand, fill_cache, run_case
from qwell.bench.sequences import GREEDY
from qwell.bench.work import Work
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import QwellError

FIRST_PROMPT = [13 * place % 256 for place in range(16)]


def main() -> int:
    """Serve the options of the first argument; status 1 if the engine does not start."""
    options = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    try:
        engine = Engine.start(options)
        _draw_first_token(engine)
    except QwellError as error:
        _say(Failed(reason=str(error)))
        return 1
    model = engine.model
    work = Work.of(model)
    cache = sum(tensor.nbytes for tensor in (*model.cache.k, *model.cache.v))
    _say(Started(dtype=engine.info.dtype, weight_bytes=work.weight_bytes, cache_bytes=cache))
    fill_cache(model)
    for line in sys.stdin:
        case = msgspec.json.decode(line, type=Case)
        seconds = run_case(engine, case, options.max_batch_tokens)
        needed = demand(work, case, options.max_batch_tokens)
        _say(
            Lap(
                seconds=seconds,
                tokens=case.batch * case.tokens,
                bytes_moved=needed.bytes_moved,
                flops=needed.flops,
                resident_bytes=_resident_bytes(),
            )
        )
    return 0


def _draw_first_token(engine: Engine) -> None:
    engine.add("first", FIRST_PROMPT, replace(GREEDY, max_tokens=1))
    while engine.has_work:
        engine.step()


def _say(message: Answer) -> None:
    print(msgspec.json.encode(message).decode(), flush=True)


def _resident_bytes() -> int | None:
    """Of this process, its mapped files included."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    sys.exit(main())
