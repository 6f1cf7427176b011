"""The table of weight names of the original layout."""

import re

import pytest

from janus_hf.layouts import janus_pro


@pytest.mark.parametrize("table", [janus_pro.ROOT_NAMES, janus_pro.TOWER_NAMES], ids=["root", "tower"])
def test_rows_are_regular_expressions_and_no_name_is_given_twice(table):
    for side in zip(*table, strict=True):
        assert len(set(side)) == len(side)
        for pattern in side:
            re.compile(pattern)


def test_general_prefixes_come_before_the_names_inside_them():
    """Saving applies the rows backwards, so the inner name must be restored before its prefix is."""
    ours = [target for _, target in janus_pro.ROOT_NAMES]
    assert ours.index(r"^vqmodel\.") < ours.index(r"vqmodel\.encoder\.down\.") < ours.index(r"\.block\.")


def test_every_aligner_depth_has_a_row():
    ours = {target for _, target in janus_pro.ROOT_NAMES}
    for aligner in ("aligner", "generation_aligner"):
        rows = [rf"^{aligner}\.fc1\.", *(rf"^{aligner}\.hidden_layers.{i}\." for i in range(7))]
        assert len(rows) == janus_pro.MAX_ALIGNER_DEPTH
        assert ours.issuperset(rows)
