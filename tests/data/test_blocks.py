"""Plans made block by block: the same packs as whole plans, in little memory, shared between processes."""

import gc
import weakref

import numpy as np
import pytest
from odd_plans import odd_lengths, odd_plan

from janus_hf.data.planning import plan as plan_module
from janus_hf.data.planning.block_cache import BlockCache
from janus_hf.data.planning.blocks import BlockPlanner
from janus_hf.data.planning.plan import make_plan


EXTENTS = pytest.mark.parametrize("extent", [{"num_packs": 701}, {"epochs": 3}])


@pytest.fixture
def planned(monkeypatch):
    """The numbers of the blocks planned so far, in order."""
    numbers = []
    next_block = BlockPlanner.next_block
    monkeypatch.setattr(
        BlockPlanner, "next_block", lambda self, state: (numbers.append(state.number), next_block(self, state))[1]
    )
    return numbers


@pytest.fixture
def long_plans(monkeypatch):
    """Make plans of more than 128 packs long ones, which are planned as they are used, in blocks of 64 packs."""
    monkeypatch.setattr(plan_module, "BLOCK", 64)
    monkeypatch.setattr(plan_module, "AHEAD", 128)


def make_planner(**options):
    """Return a planner of 701 packs in blocks of 64, from sources of very different sizes."""
    sizes = {"max_length": 512, "pool_size": 33, "num_packs": 701, "num_documents": None, "block_size": 64}
    return BlockPlanner(list(odd_lengths().values()), [1.7, 0.3, 0.01], **({"seed": 0} | sizes | options))


def same_blocks(a, b):
    """Return whether two blocks hold the same packs."""
    return np.array_equal(a.entries, b.entries) and np.array_equal(a.starts, b.starts)


def same_states(a, b):
    """Return whether two states are equal."""
    return (a.number, a.given) == (b.number, b.given) and np.array_equal(a.waiting, b.waiting)


def test_a_block_depends_on_its_state_alone():
    planner = make_planner()
    states, blocks = [planner.first_state()], []
    for _ in range(11):
        block, state = planner.next_block(states[-1])
        blocks.append(block)
        states.append(state)
    assert [len(block) for block in blocks] == [64] * 10 + [61]
    waiting = [state.waiting.copy() for state in states]
    for number in (7, 2, 10, 0):  # in any order, and by a planner that has planned nothing else
        for other in (planner, make_planner()):
            block, state = other.next_block(states[number])
            assert same_blocks(block, blocks[number])
            assert same_states(state, states[number + 1])
    assert all(np.array_equal(state.waiting, before) for state, before in zip(states, waiting, strict=True))
    assert [tuple(entry) for entry in blocks[1].pack(3)] == [
        tuple(row) for row in blocks[1].entries[blocks[1].starts[3] : blocks[1].starts[4]].tolist()
    ]


@EXTENTS
def test_plans_made_in_blocks_are_the_same(extent, planned, monkeypatch):
    whole = odd_plan(seed=5, **extent)
    entries, starts, expected = whole.entries, whole.starts, whole.hash
    monkeypatch.setattr(plan_module, "BLOCK", 64)
    planned.clear()
    blocks = odd_plan(seed=5, **extent)
    assert planned == list(range(-(-len(whole) // 64)))
    assert np.array_equal(blocks.entries, entries)
    assert np.array_equal(blocks.starts, starts)
    assert blocks.hash == expected
    assert len(planned) == -(-len(whole) // 64)  # all were kept


@EXTENTS
def test_long_plans_are_made_as_they_are_used(extent, long_plans, planned, monkeypatch):
    lazy = odd_plan(**extent)
    assert lazy.hash == odd_plan(**extent).hash != odd_plan(**extent, seed=1).hash
    assert lazy.hash == odd_plan(**{name: number + 1 for name, number in extent.items()}).hash
    planned.clear()
    last, some = lazy[len(lazy) - 1], lazy[100]
    if "num_packs" in extent:
        assert planned == [*range(11), 1]  # up to the last; the state before block 1 is known
    monkeypatch.setattr(plan_module, "AHEAD", 2**20)
    whole = odd_plan(**extent)
    assert len(lazy) == len(whole)
    assert (some, last) == (whole[100], whole[len(whole) - 1])
    assert all(lazy[index] == whole[index] for index in range(len(whole)))


@EXTENTS
def test_counts_of_long_plans_are_those_of_the_first_block_whatever_was_read(extent, long_plans):
    plan = odd_plan(**extent)
    entries = [entry for index in range(64) for entry in plan[index]]
    expected = {name: sum(plan.names[entry.source] == name for entry in entries) for name in plan.names}
    used = sum(odd_lengths()[plan.names[entry.source]][entry.row] for entry in entries)
    for index in (0, len(plan) - 1, 200):
        plan[index]
        assert plan.counts() == expected
        assert plan.efficiency(odd_lengths()) == used / (64 * 512)
    assert 0.8 < plan.efficiency(odd_lengths()) <= 1


def test_as_many_blocks_are_kept_as_the_cache_holds(planned):
    cache = BlockCache(make_planner(), capacity=2, key="plan")
    references = [weakref.ref(block) for block in cache]
    gc.collect()
    assert [reference() is not None for reference in references] == [False] * 9 + [True] * 2
    planned.clear()
    assert len(cache[10]) == 61
    assert planned == []
    assert len(cache[3]) == 64
    assert planned == [3]


def test_long_plans_go_on_where_another_process_was(long_plans, tmp_path, planned):
    first = odd_plan(num_packs=701, folder=tmp_path / "plan")
    expected = first[600]
    planned.clear()
    second = odd_plan(num_packs=701, folder=tmp_path / "plan")
    assert second[600] == expected
    assert planned == [600 // 64]
    planned.clear()
    assert odd_plan(num_packs=701, folder=tmp_path / "plan", seed=1)[100] != first[100]  # the states of another plan
    assert planned == [0, 1, 1]
    assert not list((tmp_path / "plan").glob(".*"))


def test_the_paper_can_be_planned(planned):
    """Stage 2 of the paper has 360,000 steps of 512 packs. Its plan is there before any block is planned."""
    lengths = {"understanding": np.full(5000, 760), "text": np.full(1000, 1000), "drawing": np.full(4000, 620)}
    ratios = {"understanding": 2, "text": 3, "drawing": 5}
    stage2 = make_plan(lengths, max_length=4096, ratios=ratios, num_packs=360_000 * 512)
    assert len(stage2) == 184_320_000
    stage2.check_hash(stage2.hash)
    assert planned == []
    assert len(stage2[0]) > 1
    assert planned == [0]
