"""The pack plan: exact, pure, full, resumable."""

import numpy as np
import pytest

from janus_hf.data.packing import pack
from janus_hf.data.plan import PackPlan, make_plan, take_turns


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


def test_packing_keeps_every_document_once_and_none_waits_for_ever():
    lengths = np.random.default_rng(0).integers(1, 100, 3000)
    packs = list(pack(((int(length), number) for number, length in enumerate(lengths)), 100, pool_size=64))
    flat = [number for members in packs for number in members]
    assert sorted(flat) == list(range(3000))
    assert all(lengths[members].sum() <= 100 for members in packs)
    assert max(abs(number - place) for place, number in enumerate(flat)) < 1000
    with pytest.raises(ValueError, match="at most 5 ids; got one of 6"):
        list(pack([(6, "x")], 5))
