"""The order of rows before packing, and packing itself: proportions hold, packs are full, no document is lost."""

import itertools

import numpy as np
import pytest

from janus_hf.data.planning.mixing import RowOrder, take_turns
from janus_hf.data.planning.packing import Pool, pack


def test_turns_are_taken_in_proportion():
    turns = take_turns([5, 1, 4])
    taken = np.array([next(turns) for _ in range(1000)])
    for end in (10, 57, 333, 1000):
        counts = np.bincount(taken[:end], minlength=3)
        assert np.abs(counts - end * np.array([0.5, 0.1, 0.4])).max() <= 1


def test_turns_can_be_taken_up_again():
    straight = list(itertools.islice(take_turns([0.3, 1.7, 0.01]), 1000))
    given = np.bincount(straight[:333], minlength=3).tolist()
    assert list(itertools.islice(take_turns([0.3, 1.7, 0.01], given), 667)) == straight[333:]


def test_a_row_order_is_read_in_any_pieces():
    order = RowOrder(seed=3, source=1, num_rows=7)
    whole = order.rows(0, 30)
    assert whole.dtype == np.int32
    assert whole[:, 1].tolist() == [visit for visit in range(5) for _ in range(7)][:30]
    for visit in range(4):
        assert sorted(whole[visit * 7 : visit * 7 + 7, 0]) == list(range(7))
    assert np.array_equal(order.rows(5, 11), whole[5:16])
    assert np.array_equal(RowOrder(seed=3, source=1, num_rows=7).rows(20, 10), whole[20:])
    assert not np.array_equal(RowOrder(seed=3, source=0, num_rows=7).rows(0, 30), whole)


def test_the_fullest_pair_is_found():
    random = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        lengths = random.integers(1, 60, random.integers(1, 12))
        room, slack = int(random.integers(1, 130)), int(random.integers(0, 8))
        pool = Pool()
        for number, length in enumerate(lengths.tolist()):
            pool.add(length, number)
        single = max((length for length in lengths if length <= room), default=-100)
        pairs = [a + b for a, b in itertools.combinations(lengths.tolist(), 2) if a + b <= room]
        filled = [pool.lengths[position] for position in pool.fill(room, slack)]
        if single >= room - slack:
            assert filled == [single]
        elif max(pairs, default=-100) >= room - slack:
            assert (len(filled), sum(filled)) == (2, max(pairs))
            found += 1
        else:
            assert filled == []
    assert found > 30


def test_packing_keeps_every_document_once_and_none_waits_for_ever():
    lengths = np.random.default_rng(0).integers(1, 100, 3000)
    packs = list(pack(((int(length), number) for number, length in enumerate(lengths)), 100, pool_size=64))
    flat = [number for members in packs for number in members]
    assert sorted(flat) == list(range(3000))
    assert all(lengths[members].sum() <= 100 for members in packs)
    assert max(abs(number - place) for place, number in enumerate(flat)) < 1000
    with pytest.raises(ValueError, match="at most `max_length`=5 tokens, got one of 6"):
        list(pack([(6, "x")], 5))
