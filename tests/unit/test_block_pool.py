"""The block pool: owners, and prefixes that are found again."""

from __future__ import annotations

import pytest

from qwell.runtime.block_pool import BlockPool

IDS = list(range(40))


def keys(pool: BlockPool, ids: list[int], salt: str = "") -> list[bytes]:
    names: list[bytes] = []
    pool.extend_keys(names, ids, salt)
    return names


def cached(pool: BlockPool, ids: list[int], salt: str = "") -> list[int]:
    """Have the pool hold the full blocks of `ids`, which nobody owns."""
    names = keys(pool, ids, salt)
    blocks = pool.take(len(names))
    for place, name in enumerate(names):
        parent = names[place - 1] if place else pool.root(salt)
        pool.register(blocks[place], name, ids[16 * place : 16 * place + 16], parent)
    result = list(blocks)
    pool.give_back(blocks)
    return result


def test_a_pool_does_not_hand_out_more_than_it_has() -> None:
    pool = BlockPool(2)
    taken = pool.take(2)
    with pytest.raises(ValueError, match="1 blocks wanted, 0 free"):
        pool.take(1)
    pool.give_back(taken)
    assert (pool.num_free, taken) == (2, [])


def test_names_are_of_full_blocks_and_all_tokens_before() -> None:
    pool = BlockPool(1)
    names = keys(pool, IDS)
    assert len(names) == 2
    assert keys(pool, IDS[:32]) == names
    assert keys(pool, [*IDS[:31], 0])[0] == names[0]
    assert keys(pool, [*IDS[:31], 0])[1] != names[1]
    assert keys(pool, [9, *IDS[1:]])[1] != names[1]
    assert not {*keys(pool, IDS, "salt"), *keys(BlockPool(1), IDS)} & set(names)
    pool.extend_keys(names, [*IDS, *range(8)], "")
    assert names == keys(pool, [*IDS, *range(8)])


def test_the_longest_known_beginning_is_found() -> None:
    pool = BlockPool(8)
    blocks = cached(pool, IDS)
    assert pool.find(keys(pool, [*IDS[:32], *IDS]), [*IDS[:32], *IDS]) == blocks
    assert pool.find(keys(pool, [*IDS[:16], *IDS]), [*IDS[:16], *IDS]) == blocks[:1]
    assert pool.find(keys(pool, IDS, "salt"), IDS) == []


def test_a_name_alone_is_no_hit() -> None:
    pool = BlockPool(8)
    cached(pool, IDS)
    assert pool.find(keys(pool, IDS), [1, *IDS[1:]]) == []


def test_cached_blocks_are_taken_last_and_the_oldest_end_first() -> None:
    pool = BlockPool(5)
    first = cached(pool, IDS)
    cached(pool, IDS, "salt")
    pool.take(1)
    assert pool.num_free == 4
    assert pool.find(keys(pool, IDS), IDS) == first
    pool.take(1)
    assert pool.find(keys(pool, IDS), IDS) == first[:1]
    assert len(pool.find(keys(pool, IDS, "salt"), IDS)) == 2


def test_shared_blocks_stay_until_the_last_owner_is_gone() -> None:
    pool = BlockPool(4)
    blocks = cached(pool, IDS)
    mine, yours = list(blocks), list(blocks)
    assert pool.num_idle(blocks) == 2
    pool.share(mine)
    pool.share(yours)
    assert (pool.num_free, pool.num_idle(blocks)) == (2, 0)
    pool.check([mine, yours])
    pool.give_back(mine)
    assert pool.num_free == 2
    pool.give_back(yours)
    assert pool.num_free == 4
    pool.check([])


def test_equal_blocks_are_kept_once() -> None:
    pool = BlockPool(4)
    [name, _] = keys(pool, IDS)
    blocks = pool.take(2)
    for block in blocks:
        pool.register(block, name, IDS[:16], pool.root(""))
    assert pool.find([name], IDS) == blocks[:1]
    pool.check([blocks])
    pool.give_back(blocks)
    pool.check([])


def test_the_check_sees_a_block_that_is_lost_and_one_that_is_doubled() -> None:
    pool = BlockPool(4)
    blocks = pool.take(2)
    with pytest.raises(AssertionError):
        pool.check([])
    with pytest.raises(AssertionError):
        pool.check([blocks, blocks])
