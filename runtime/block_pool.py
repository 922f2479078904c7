"""Who owns which block of the KV cache, and which blocks hold a prefix that can be used again.

A block is free, owned by one or more sequences, or idle: nobody's, but with tokens that a later
sequence may begin with. Idle blocks are as good as free ones, and are taken when those are gone,
the least recently used first. Plain Python: no tensors.

The name of a full block is a hash of all tokens up to its end, of the salt of its sequence, and
of a secret of this pool. So nobody can make up tokens whose name is that of other tokens, and
requests of different salts never share. A hit compares the tokens of the block as well.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from qwell.runtime.kv_cache import BLOCK_SIZE

_pack_ids = struct.Struct(f"<{BLOCK_SIZE}I").pack


class _Content(NamedTuple):
    key: bytes
    token_ids: Sequence[int]
    parent: bytes


class Prefix(NamedTuple):
    """The tokens of a block, and the place in a list of the one that it follows; -1 is none."""

    token_ids: Sequence[int]
    follows: int


class BlockPool:
    """Blocks 0 .. num_blocks - 1. Without `prefix_cache` nothing is ever found again."""

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = prefix_cache
        self._secret = secrets.token_bytes(32)
        self._owners = [0] * num_blocks
        # Taken from the end: low numbers first.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._contents: dict[int, _Content] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, idle ones included."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int]:
        """`count` blocks of the caller's own, who has checked `num_free`."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} free")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for blocks that were found; they are only read."""
        for block in blocks:
            if self._owners[block] == 0:
                del self._idle[block]
            self._owners[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        """End the ownership of blocks; `blocks` is emptied, so that no owner keeps them."""
        # The end of a prefix is of no use without its beginning, so it goes first.
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if block in self._contents:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        blocks.clear()

    def extend_keys(self, keys: list[bytes], token_ids: Sequence[int], salt: str) -> None:
        """Name the blocks of `token_ids` that have become full since `keys` was extended last."""
        for start in range(len(keys) * BLOCK_SIZE, len(token_ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
            parent = keys[-1] if keys else self.root(salt)
            keys.append(_name(parent, token_ids[start : start + BLOCK_SIZE]))

    def root(self, salt: str) -> bytes:
        """What stands for the name of a parent in the first block of a sequence."""
        return self._secret + sha256(salt.encode()).digest()

    def find(self, keys: Iterable[bytes], token_ids: Sequence[int]) -> list[int]:
        """The blocks of the longest known beginning of `token_ids`, whose blocks `keys` name."""
        found: list[int] = []
        for key in keys:
            block = self._blocks.get(key)
            start = len(found) * BLOCK_SIZE
            if (
                block is None
                or self._contents[block].token_ids != token_ids[start : start + BLOCK_SIZE]
            ):
                break
            found.append(block)
        return found

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody owns: so many fewer are free once they are shared."""
        return sum(self._owners[block] == 0 for block in blocks)

    def register(self, block: int, key: bytes, token_ids: Sequence[int], parent: bytes) -> None:
        """A full block can be found by its name from now on, unless an equal one can already.

        `parent` is the name of the block before it, or a root.
        """
        if key not in self._blocks:
            self._blocks[key] = block
            self._contents[block] = _Content(key, token_ids, parent)

    def hottest(self, most: int) -> tuple[list[int], list[Prefix]]:
        """Idle blocks without a salt, those used last first, and what is in them.

        At most so many, and each after the one that it follows.
        """
        places = {self.root(""): -1}
        blocks: list[int] = []
        prefixes: list[Prefix] = []
        for block in reversed(self._idle):
            content = self._contents[block]
            follows = places.get(content.parent)
            if follows is None:
                continue
            if len(blocks) == most:
                break
            places[content.key] = len(blocks)
            blocks.append(block)
            prefixes.append(Prefix(content.token_ids, follows))
        return blocks, prefixes

    def restore(self, prefixes: Sequence[Prefix]) -> list[int]:
        """Blocks that can be found by these tokens from now on, for the caller to fill.

        The caller owns them, and has checked `num_free`.
        """
        blocks = self.take(len(prefixes))
        keys: list[bytes] = []
        for block, prefix in zip(blocks, prefixes, strict=True):
            parent = self.root("") if prefix.follows < 0 else keys[prefix.follows]
            keys.append(_name(parent, prefix.token_ids))
            self.register(block, keys[-1], prefix.token_ids, parent)
        return blocks

    def check(self, owned: Iterable[Sequence[int]]) -> None:
        """Assert that the books are right, where `owned` has the blocks of every owner there is."""
        owners = Counter(block for blocks in owned for block in blocks)
        assert [owners[block] for block in range(self.num_blocks)] == self._owners
        nobodys = {block for block in range(self.num_blocks) if not owners[block]}
        assert sorted([*self._free, *self._idle]) == sorted(nobodys)
        assert set(self._idle) == nobodys & set(self._contents)
        assert self._blocks == {content.key: b for b, content in self._contents.items()}

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._blocks[self._contents.pop(block).key]
        return block


def _name(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return sha256(parent + _pack_ids(*token_ids)).digest()
