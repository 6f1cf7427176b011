"""The pack plan: exact, pure, full, resumable."""

import itertools

import numpy as np
import pytest

from janus_hf.data.planning import plan as plan_module
from janus_hf.data.planning.packing import Pool, pack
from janus_hf.data.planning.plan import PackPlan, make_plan, take_turns


RATIOS = {"understanding": 5, "text": 1, "drawing": 4}


def paper_lengths(rows=10_000, seed=0):
    """Lengths like those of the paper's mixture."""
    random = np.random.default_rng(seed)
    return {
        "understanding": random.integers(620, 901, rows // 2),
        "text": random.integers(50, 2001, rows // 10),
        "drawing": random.integers(600, 641, rows * 4 // 10),
    }


@pytest.fixture(scope="module")
def plan():
    return make_plan(paper_lengths(), max_length=4096, ratios=RATIOS)


def test_packs_are_full(plan):
    lengths = paper_lengths()
    used = [sum(lengths[plan.names[entry.source]][entry.row] for entry in plan[i]) for i in range(len(plan))]
    assert max(used) <= 4096
    assert plan.efficiency(lengths) == pytest.approx(sum(used) / (4096 * len(plan)))
    assert plan.efficiency(lengths) >= 0.99  # 0.9986; the issue asks for 0.95, best fit decreasing reaches 0.947


def test_ratios_are_exact(plan):
    assert plan.counts() == {"understanding": 5000, "text": 1000, "drawing": 4000}


def test_ratios_hold_in_a_plan_of_so_many_packs_and_in_any_stretch_of_it():
    small = {name: lengths[:300] for name, lengths in paper_lengths().items()}
    plan = make_plan(small, max_length=4096, ratios=RATIOS, num_packs=1800)
    counts = np.array(list(plan.counts().values()))
    assert len(plan) == 1800
    assert counts.sum() > 10_000
    assert np.abs(counts / counts.sum() - [0.5, 0.1, 0.4]).max() < 0.005
    for first in range(0, 1800, 300):
        part = plan.entries[plan.starts[first] : plan.starts[first + 300], 0]
        assert np.abs(np.bincount(part, minlength=3) / len(part) - [0.5, 0.1, 0.4]).max() < 0.03


def test_without_ratios_an_epoch_is_every_row_once():
    lengths = {"a": [10, 20, 30], "b": [5] * 7}
    plan = make_plan(lengths, max_length=64)
    assert sorted(map(tuple, plan.entries.tolist())) == [(0, n, 0) for n in range(3)] + [(1, n, 0) for n in range(7)]
    three = make_plan(lengths, max_length=64, epochs=3)
    assert len(np.unique(three.entries, axis=0)) == len(three.entries) == 30
    assert set(three.entries[:, 2]) == {0, 1, 2}


def test_visits_go_through_all_rows_before_any_comes_again():
    plan = make_plan({"a": [10] * 20, "b": [10] * 3}, max_length=40, ratios={"a": 1, "b": 1})
    rows = plan.entries[plan.entries[:, 0] == 1]
    visits, counts = np.unique(rows[:, 2], return_counts=True)
    assert visits.tolist() == [0, 1, 2, 3]
    assert counts[:3].tolist() == [3, 3, 3]


def test_a_plan_is_a_pure_function_of_its_arguments(plan):
    again = make_plan(paper_lengths(), max_length=4096, ratios=RATIOS)
    assert again.hash == plan.hash
    assert np.array_equal(again.entries, plan.entries)
    state = np.random.get_state()[1].tolist()
    others = [
        make_plan(paper_lengths(), max_length=4096, ratios=RATIOS, seed=1),
        make_plan(paper_lengths(), max_length=4000, ratios=RATIOS),
        make_plan(paper_lengths(seed=1), max_length=4096, ratios=RATIOS),
        make_plan(paper_lengths(), max_length=4096, ratios=RATIOS | {"text": 2}),
        make_plan(paper_lengths(), max_length=4096, ratios=RATIOS, num_packs=100),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 6
    assert np.random.get_state()[1].tolist() == state


def test_saved_plans_are_the_same_and_changed_ones_are_refused(plan, tmp_path):
    plan.save(tmp_path / "plan.npz")
    loaded = PackPlan.load(tmp_path / "plan.npz")
    assert loaded.hash == plan.hash
    assert loaded[7] == plan[7]
    loaded.check_hash(plan.hash)
    with pytest.raises(ValueError, match=f"its hash is {plan.hash}, the run to be resumed had 0123"):
        loaded.check_hash("0123")
    with pytest.raises(IndexError):
        plan[len(plan)]


def odd_lengths():
    lengths = {name: np.random.default_rng(seed).integers(1, most, rows) for seed, name, most, rows in
               ((1, "a", 200, 997), (2, "b", 500, 313))}  # fmt: skip
    return lengths | {"c": [500]}


def odd_plan(**options):
    return make_plan(odd_lengths(), max_length=512, ratios={"b": 0.3, "a": 1.7, "c": 0.01}, pool_size=33, **options)


def test_plans_are_those_that_models_were_trained_with(plan):
    """Recorded from the first planner, which made whole plans, a document at a time, at commit 9066a82."""
    assert (plan.hash, len(plan)) == ("974112aa2a39fdef", 1783)
    repeating = make_plan({"a": [10, 20, 30], "b": [5] * 7}, max_length=64, epochs=3)
    assert (repeating.hash, len(repeating)) == ("d52c1157d9765f50", 5)
    odd = odd_plan(seed=5, num_packs=700)
    assert (odd.hash, len(odd), sum(odd.counts().values())) == ("bc08448eca4af5d7", 700, 2853)
    small = {name: lengths[:300] for name, lengths in paper_lengths().items()}
    many = make_plan(small, max_length=4096, ratios=RATIOS, num_packs=1800)
    assert (many.hash, sum(many.counts().values())) == ("943e1f854c69c306", 10_075)


@pytest.mark.parametrize("extent", [{"num_packs": 701}, {"epochs": 3}])
def test_plans_made_in_blocks_are_the_same(extent, monkeypatch):
    whole = odd_plan(seed=5, **extent)
    entries, starts, expected = whole.entries, whole.starts, whole.hash
    monkeypatch.setattr(plan_module, "BLOCK", 64)
    blocks = odd_plan(seed=5, **extent)
    assert len(blocks._blocks) == -(-len(whole) // 64)
    assert np.array_equal(blocks.entries, entries)
    assert np.array_equal(blocks.starts, starts)
    assert blocks.hash == expected


@pytest.fixture
def long_plans(monkeypatch):
    """What is planned as it is used, and keeps little: here, more than 128 packs."""
    monkeypatch.setattr(plan_module, "BLOCK", 64)
    monkeypatch.setattr(plan_module, "AHEAD", 128)


@pytest.mark.parametrize("extent", [{"num_packs": 701}, {"epochs": 3}])
def test_long_plans_are_made_as_they_are_used(extent, long_plans, monkeypatch):
    lazy = odd_plan(**extent)
    made = []
    make = PackPlan._make_block
    monkeypatch.setattr(PackPlan, "_make_block", lambda self, number: (made.append(number), make(self, number))[1])
    assert lazy.hash == odd_plan(**extent).hash != odd_plan(**extent, seed=1).hash
    assert lazy.hash != odd_plan(**{name: number + 1 for name, number in extent.items()}).hash
    made.clear()
    counts = lazy.counts()
    assert sum(counts.values()) == sum(len(block.entries) for block in lazy._blocks.values())
    assert 0.8 < lazy.efficiency(odd_lengths()) <= 1
    last, some = lazy[len(lazy) - 1], lazy[100]
    if "num_packs" in extent:
        assert made == [*range(11), 1]  # up to the last; the state before block 1 is known
    assert len(lazy._blocks) <= 2
    monkeypatch.setattr(plan_module, "AHEAD", 2**20)
    whole = odd_plan(**extent)
    assert len(lazy) == len(whole)
    assert (some, last) == (whole[100], whole[len(whole) - 1])
    assert all(lazy[index] == whole[index] for index in range(len(whole)))


def test_long_plans_go_on_where_another_process_was(long_plans, tmp_path, monkeypatch):
    first = odd_plan(num_packs=701, folder=tmp_path / "plan")
    expected = first[600]
    made = []
    make = PackPlan._make_block
    monkeypatch.setattr(PackPlan, "_make_block", lambda self, number: (made.append(number), make(self, number))[1])
    second = odd_plan(num_packs=701, folder=tmp_path / "plan")
    assert second[600] == expected
    assert made == [600 // 64]
    made.clear()
    assert odd_plan(num_packs=701, folder=tmp_path / "plan", seed=1)[100] != first[100]  # another plan's notes
    assert made == [0, 1, 1]
    assert not list((tmp_path / "plan").glob(".*"))


def test_the_paper_can_be_planned():
    """Stage 2: 360,000 steps of 512 packs. It begins at once."""
    stage2 = make_plan(paper_lengths(), max_length=4096, ratios={"understanding": 2, "text": 3, "drawing": 5},
                       num_packs=360_000 * 512)  # fmt: skip
    assert len(stage2) == 184_320_000
    assert len(stage2._blocks) == 0
    stage2.check_hash(stage2.hash)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ({"a": [1]}, {"ratios": {"a": 0}}, r"positive ratios; got \{'a': 0\}"),
        ({"a": [1]}, {"ratios": {"a": -1}}, "positive ratios"),
        ({"a": [1]}, {"ratios": {"a": float("nan")}}, "positive ratios"),
        ({"a": [1]}, {"ratios": {"b": 1}}, r"sources \['a'\]; got ratios for \['b'\]"),
        ({"a": [1], "b": [1]}, {"ratios": {"a": 1}}, "a ratio for each"),
        ({"a": []}, {}, "positive ratios"),
        ({"a": [], "b": [1]}, {"ratios": {"a": 1, "b": 1}}, "'a' is empty"),
        ({}, {}, "at least one source"),
        ({"a": [5, 65, 99]}, {}, "2 longer ones, up to 99"),
        ({"a": [1]}, {"epochs": 0}, "epochs to be positive"),
        ({"a": [1]}, {"num_packs": -1}, "num_packs to be positive"),
        ({"a": [1]}, {"num_packs": 1, "epochs": 1}, "got both"),
    ],
)
def test_impossible_plans_are_refused(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(lengths, max_length=64, **options)


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
    with pytest.raises(ValueError, match="at most 5 ids; got one of 6"):
        list(pack([(6, "x")], 5))
