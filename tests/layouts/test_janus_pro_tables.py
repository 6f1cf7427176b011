"""The tables of the original layout: weight names and special tokens."""

import re

import pytest

from janus_hf.layouts import janus_pro


IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "image_token_id": 5}


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


@pytest.mark.parametrize("as_list", [False, True], ids=["BPE", "Unigram"])
def test_special_tokens_are_found_in_either_kind_of_vocabulary(as_list):
    tokens = dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"])
    pieces = [janus_pro.SPECIAL_TOKENS[name] for name in tokens]
    vocab = [(piece, -1.0) for piece in pieces] if as_list else {piece: index for index, piece in enumerate(pieces)}
    added = [{"content": janus_pro.SPECIAL_TOKENS["image_token_id"], "id": 5}]
    assert janus_pro.special_token_ids({"model": {"vocab": vocab}, "added_tokens": added}) == IDS


def test_an_added_token_has_precedence_and_a_missing_one_is_left_out():
    bos = janus_pro.SPECIAL_TOKENS["bos_token_id"]
    tokenizer = {"model": {"vocab": {bos: 3}}, "added_tokens": [{"content": bos, "id": 9}]}
    assert janus_pro.special_token_ids(tokenizer) == {"bos_token_id": 9}
    assert janus_pro.special_token_ids({}) == {}
