"""The constraints of an engine's sequences: grammars are compiled, and masks made, beside steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qwell.runtime.constraint import Bits, Constraint, mask_words
from qwell.runtime.cpu import count_cores
from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.grammar import Grammar, error_of, limits, llguidance_text, unusable
from qwell.runtime.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

    from qwell.runtime.tokenizer import Tokenizer

# Compiled grammars that are kept for later requests; most take less than a megabyte, none more
# than `grammar_check.py` lets them.
_KEPT_GRAMMARS = 32
_MOST_MASK_THREADS = 8
_BANNED_ROWS = 32
# For each byte of a mask the most that the logits of its eight ids may be, fp32 [256, 8].
_LIMITS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1,
    np.float32(np.inf),
    np.float32(-np.inf),
)


class Constraints:
    """Makes the constraints of sequences, and the masks of steps.

    Grammars are compiled in a thread of their own, the vocabulary that they need with the first.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Of a model with the tokenizer in `folder`."""
        self._folder = folder
        self._vocab_size = vocab_size
        self._compiler = ThreadPoolExecutor(1, "grammars")
        self._masker = ThreadPoolExecutor(1, "masks")
        self._matchers: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._waiting: dict[Sequence, Future[LLMatcher]] = {}

    @property
    def num_waiting(self) -> int:
        """Sequences whose grammars are being compiled."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> bool:
        """Give a sequence its constraint; False where it has to wait for its grammar first."""
        grammar = sequence.params.grammar
        if grammar is None:
            if sequence.params.thinking is not None:
                self._constrain(sequence, None)
            return True
        compiled = self._matchers.pop(grammar, None)
        if compiled is None:
            compiled = self._compiler.submit(self._compile, grammar)
        self._matchers[grammar] = compiled
        if len(self._matchers) > _KEPT_GRAMMARS:
            self._matchers.popitem(last=False)
        self._waiting[sequence] = compiled
        return False

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended: it waits no longer, and any id may come for it."""
        self._waiting.pop(sequence, None)
        sequence.constraint = None

    def ready(self, timeout: float) -> list[tuple[Sequence, str]]:
        """Sequences that have their constraint now, or a message that says why there is none.

        Waits for the first of them, up to `timeout` seconds.
        """
        wait(self._waiting.values(), timeout, FIRST_COMPLETED)
        done = [sequence for sequence, compiled in self._waiting.items() if compiled.done()]
        return [(sequence, self._take(sequence, self._waiting.pop(sequence))) for sequence in done]

    def masks(self, drawn: SequenceOf[Chunk]) -> Masks | None:
        """Begin to make masks for what is drawn after these chunks; None where every id may come.

        The sequences' tokens must not change until the masks are applied.
        """
        if all(chunk.sequence.constraint is None for chunk in drawn):
            return None
        places: list[_Place] = []
        row = 0
        for chunk in drawn:
            if chunk.sequence.num_free == 0:
                places.append(_Place(row, chunk.sequence, list(chunk.draft_ids)))
            row += chunk.num_drawn
        return Masks(places, self._masker.submit(self._fill, places)) if places else None

    def close(self) -> None:
        """End the threads."""
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._masker.shutdown(wait=False)

    def _take(self, sequence: Sequence, compiled: Future[LLMatcher]) -> str:
        try:
            matcher = compiled.result()
        except (RequestError, CheckpointError) as error:
            return str(error)
        self._constrain(sequence, matcher.deep_copy())
        return ""

    def _constrain(self, sequence: Sequence, matcher: LLMatcher | None) -> None:
        sequence.constraint = Constraint(
            sequence.params, sequence.end_ids, sequence.late_ids, self._vocab_size, matcher
        )

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        try:
            text = llguidance_text(grammar)
        except ValueError as error:
            raise unusable(str(error)) from error
        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=limits())
        if matcher.is_error():
            raise unusable(error_of(matcher.get_error()))
        return matcher

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """What the model's ids stand for; its rows beyond the tokenizer's ids stand for nothing."""
        from llguidance import LLTokenizer, TokenizerWrapper

        from qwell.runtime.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_dir(self._folder)
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, self._vocab_size))
        return LLTokenizer(wrapper, n_vocab=self._vocab_size + 1)

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(min(count_cores().threads, _MOST_MASK_THREADS))

    def _fill(self, places: SequenceOf[_Place]) -> Bits:
        """Masks [rows of all places, words], in their order."""
        count = sum(place.num_rows for place in places)
        bits: Bits = np.zeros((count, mask_words(self._vocab_size)), dtype=np.uint32)
        alone: list[tuple[LLMatcher, int]] = []
        guessed: list[tuple[LLMatcher, int, list[int]]] = []
        first = 0
        for place in places:
            matcher = place.constraint.asked_matcher
            if matcher is not None and place.draft_ids:
                guessed.append((matcher, first, place.draft_ids))
            elif matcher is not None:
                alone.append((matcher, first))
            first += place.num_rows
        masks = bits.ctypes.data, bits.shape[1] * bits.itemsize, count
        if alone:
            self._executor.unsafe_compute_mask_ptr(alone, *masks)
        if guessed:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(guessed, *masks)
        rows = iter(bits)
        for place in places:
            for ahead in range(place.num_rows):
                place.constraint.restrict(next(rows), ahead)
        return bits


class Masks:
    """Masks of some rows of a step's logits, on their way."""

    def __init__(self, places: SequenceOf[_Place], bits: Future[Bits]) -> None:
        """`bits` has one mask for each row of `places`, in their order."""
        self._places = places
        self._bits = bits

    def apply(self, logits: Tensor) -> list[tuple[Sequence, int]]:
        """Ban in fp32 logits [S, V], in place, what the masks do not allow.

        Returns the sequences that would have no id left in some row, and after how many guesses
        that is; such rows are as they were.
        """
        bits = self._bits.result()
        left = bits.any(axis=1)
        rows = np.array([row for place in self._places for row in place.rows], dtype=np.int64)
        if logits.device.type == "cpu":
            ban_on_host(logits, rows[left], bits[left])
        else:
            ban_on_device(logits, rows[left], bits[left])
        if left.all():
            return []
        stuck = set(rows[~left].tolist())
        firsts = (
            (place.sequence, next((row - place.row for row in place.rows if row in stuck), None))
            for place in self._places
        )
        return [(sequence, ahead) for sequence, ahead in firsts if ahead is not None]


@dataclass(frozen=True)
class _Place:
    """Where ids are drawn for a sequence: a row of the logits, and one more for each guess."""

    row: int
    sequence: Sequence
    draft_ids: list[int]

    @property
    def constraint(self) -> Constraint:
        assert self.sequence.constraint is not None, "masks are for sequences with constraints"
        return self.sequence.constraint

    @property
    def num_rows(self) -> int:
        return 1 + len(self.draft_ids)

    @property
    def rows(self) -> range:
        return range(self.row, self.row + self.num_rows)


def ban_on_host(logits: Tensor, rows: np.ndarray, bits: Bits) -> None:
    """Ban in `rows` of fp32 logits [S, V] what masks [rows, words] do not allow, on a CPU."""
    # 40 us for a row of 151936 ids; torch would wake its threads for it, and take longer.
    values = logits.numpy()
    for row, allowed in zip(rows, bits, strict=True):
        most = np.take(_LIMITS, allowed.view(np.uint8), axis=0).reshape(-1)
        np.minimum(values[row], most[: values.shape[1]], out=values[row])


def ban_on_device(logits: Tensor, rows: np.ndarray, bits: Bits) -> None:
    """The same on any device, without a wait for it."""
    masks, places = torch.from_numpy(bits.view(np.uint8)), torch.from_numpy(rows)
    if logits.device.type == "cuda":
        masks, places = masks.pin_memory(), places.pin_memory()
    masks = masks.to(logits.device, non_blocking=True)
    places = places.to(logits.device, non_blocking=True)
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    # A few rows at a time: those of a full batch would take as much memory as its logits.
    for some, masked in zip(masks.split(_BANNED_ROWS), places.split(_BANNED_ROWS), strict=True):
        allowed = (some.unsqueeze(-1) >> shifts & 1).flatten(1)[:, : logits.shape[1]]
        logits[masked] = logits[masked].masked_fill_(allowed == 0, -torch.inf)


class _Vocabulary:
    """A tokenizer as llguidance's TokenizerWrapper takes it, with one id more: the text's end."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = vocab_size
        self.tokens = [*(tokenizer.token_bytes(i) for i in range(vocab_size)), b"<end>"]
        special = (i for i in tokenizer.special_ids if i < vocab_size)
        self.special_token_ids = [*special, vocab_size]

    def __call__(self, text: str) -> list[int]:
        """How a model spells what it must say: marks as `<tool_call>` by ids of their own."""
        ids = self._tokenizer.encode(text)
        if self._tokenizer.special_ids.isdisjoint(ids):
            return ids
        # A control token is no text: where its name is asked for, it is spelt out.
        return self._tokenizer.encode(text, parse_special=False)
