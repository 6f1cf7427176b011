"""The order by shards: a permutation on every visit, of few shards at a time, the same from any position."""

import doctest

import numpy as np
import pytest
from odd_plans import odd_lengths

from janus_hf.data import PackPlan, ShardShuffle, load_prepared, make_plan, prepare
from janus_hf.data.planning import plan as plan_module
from janus_hf.data.planning import shard_order
from janus_hf.data.planning.shard_order import ShardOrder


LAYOUTS = {
    "equal": [8] * 10,
    "last is short": [8] * 9 + [3],
    "empty ones": [0, 5, 0, 0, 7, 1, 0],
    "one": [30],
    "one row": [1],
    "larger than the buffer": [100, 3, 50, 1, 1, 1, 20],
}


def starts_of(sizes):
    """Return the numbers of the first rows of shards of these sizes, and the number of rows."""
    return np.cumsum([0, *sizes])


@pytest.mark.parametrize("buffer", [1, 7, 16, 10_000])
@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_every_visit_is_a_permutation_whatever_is_read_first(sizes, buffer):
    starts, total = starts_of(sizes), sum(sizes)
    straight = ShardOrder(3, 0, starts, buffer).rows(0, 3 * total)
    assert straight[:, 1].tolist() == [visit for visit in range(3) for _ in range(total)]
    for visit in range(3):
        assert sorted(straight[straight[:, 1] == visit, 0]) == list(range(total))
    order = ShardOrder(3, 0, starts, buffer)
    for start in np.random.default_rng(0).permutation(3 * total)[:20].tolist():
        assert np.array_equal(order.rows(start, 9), ShardOrder(3, 0, starts, buffer).rows(start, 9))
        assert np.array_equal(order.rows(start, min(9, 3 * total - start)), straight[start : start + 9])


def test_few_shards_are_read_at_a_time():
    """Any stretch as long as the buffer comes from two windows, each with the shards of the buffer and one more."""
    starts, buffer = starts_of([10] * 200), 40
    rows = ShardOrder(0, 0, starts, buffer).rows(0, 2000)[:, 0]
    shards = np.searchsorted(starts, rows, side="right") - 1
    assert max(len(set(shards[at : at + buffer])) for at in range(0, 2000 - buffer, 7)) <= 2 * (buffer // 10 + 1)
    assert len(set(shards[:buffer])) > 1
    assert rows[:buffer].tolist() != sorted(rows[:buffer].tolist())


def test_visits_seeds_and_sources_have_their_own_orders():
    starts = starts_of([10] * 20)
    orders = [ShardOrder(seed, source, starts, 30).rows(0, 400) for seed in (0, 1) for source in (0, 1)]
    seen = [tuple(order[visit * 200 : (visit + 1) * 200, 0].tolist()) for order in orders for visit in (0, 1)]
    assert len(set(seen)) == len(seen)


def shuffle(buffer=64):
    """Return an order by shards of `odd_lengths`, in shards of 50 rows."""
    ends = {name: len(rows) for name, rows in odd_lengths().items()}
    return ShardShuffle({name: np.append(np.arange(0, end, 50), end) for name, end in ends.items()}, buffer)


RATIOS = {"b": 0.3, "a": 1.7, "c": 0.01}


def plan_of(order, **options):
    """Return a plan of `odd_lengths` with this order."""
    options = {"max_length": 512, "ratios": RATIOS, "pool_size": 33, "num_packs": 400} | options
    return make_plan(odd_lengths(), shuffle=order, **options)


def test_a_plan_by_shards_keeps_ratios_and_fills_packs():
    exact, by_shards = plan_of(None), plan_of(shuffle())
    counts, expected = by_shards.counts(), exact.counts()
    shares = {name: counts[name] / sum(counts.values()) for name in counts}
    assert all(abs(shares[name] - expected[name] / sum(expected.values())) < 0.01 for name in counts)
    assert abs(by_shards.efficiency(odd_lengths()) - exact.efficiency(odd_lengths())) < 0.01


def test_the_plan_is_a_pure_function_and_its_hash_covers_the_order(tmp_path):
    plan = plan_of(shuffle())
    assert plan.hash == plan_of(shuffle()).hash
    others = [plan_of(None), plan_of(shuffle(65)), plan_of(shuffle(), seed=1)]
    other_shards = shuffle()
    other_shards.starts["a"] = np.array([0, 500, 997])
    others.append(plan_of(other_shards))
    assert len({plan.hash, *(other.hash for other in others)}) == 5
    plan.save(tmp_path / "plan.npz")
    assert PackPlan.load(tmp_path / "plan.npz").entries.tolist() == plan.entries.tolist()


def test_a_long_plan_goes_on_from_any_block(monkeypatch, tmp_path):
    """As on another rank, in a loader process or after a restart, that did not plan the blocks before."""
    whole = plan_of(shuffle())
    expected = [whole[index] for index in range(400)]
    monkeypatch.setattr(plan_module, "BLOCK", 32)
    monkeypatch.setattr(plan_module, "AHEAD", 64)
    first = plan_of(shuffle(), folder=tmp_path)
    assert [first[index] for index in range(200)] == expected[:200]
    second = plan_of(shuffle(), folder=tmp_path)
    assert [second[index] for index in (399, 150, 0, 299)] == [expected[index] for index in (399, 150, 0, 299)]


@pytest.mark.parametrize("buffer", [0, -1, 1.5, True, "many", None])
def test_a_buffer_is_a_number_of_rows(buffer):
    with pytest.raises(ValueError, match="`buffer` must be an integer of 1 or more"):
        shuffle(buffer)


def test_starts_of_other_data_are_refused():
    order = shuffle()
    order.starts["a"] = np.array([0, 996])
    with pytest.raises(ValueError, match="the 997 rows of the source 'a', got 996 rows"):
        plan_of(order)
    del order.starts["a"]
    with pytest.raises(ValueError, match="the 997 rows of the source 'a', got none"):
        plan_of(order)


def test_prepared_data_have_the_starts(conversations, model, processor, tmp_path):
    prepare(conversations, tmp_path, model, processor, rows_per_shard=2)
    rows = load_prepared(tmp_path)
    plan = make_plan({"talk": rows.lengths}, max_length=512, shuffle=ShardShuffle({"talk": rows.starts}, 2))
    assert sorted(plan.entries[:, 1].tolist()) == [0, 1, 2, 3, 4]


def test_the_worked_example_holds():
    assert doctest.testmod(shard_order).failed == 0
