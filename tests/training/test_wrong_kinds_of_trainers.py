"""Arguments of the trainers of the wrong kind are refused before anything is computed."""

import pytest
from toy import collate, config_for, load_model, load_processor

from janus_hf.training.trainers.codec import CodecTrainer
from janus_hf.training.trainers.option_tables import (
    CODEC_KEYWORDS,
    CODEC_REFUSED,
    KEYWORD_VALUES,
    SFT_KEYWORDS,
    SFT_REFUSED,
    refuse_keywords,
)
from janus_hf.training.trainers.sft import JanusProSFTTrainer


WRONG = {
    "callbacks": ("x", ["x"], 3, [3], [object()], print),
    "optimizers": ("x", 3, (3,), (3, 4), ["x", "y"], print),
    "optimizer_cls_and_kwargs": ("x", 3, (dict,), ("adam", {}), (dict, 3)),
    "eval_dataset": (3, "rows", print),
}
OF_CODECS = {
    "train_dataset": (3, "rows", print),
    "data_collator": (3, "x"),
    "compute_metrics": (3, "x"),
    "preprocess_logits_for_metrics": (3, "x"),
    "perceptual": (3, "x"),
    "adversarial": (3, "x"),
    "teacher": (3, "x"),
    "temperature": (0, -1, "x", True),
}
ROWS = [
    (name, value, table, passed_on)
    for wrong, table, passed_on in (
        (WRONG, SFT_REFUSED, SFT_KEYWORDS),
        (WRONG | OF_CODECS, CODEC_REFUSED, CODEC_KEYWORDS | OF_CODECS.keys()),
    )
    for name, values in wrong.items()
    for value in values
]


@pytest.mark.parametrize(
    ("name", "value", "table", "passed_on"), ROWS, ids=[f"{row[0]}-{row[1]!r:.9}" for row in ROWS]
)
def test_a_wrong_kind_is_refused_by_name(name, value, table, passed_on):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        refuse_keywords({name: value}, table, passed_on)


def test_every_keyword_is_checked():
    assert KEYWORD_VALUES.keys() >= SFT_KEYWORDS
    assert CODEC_KEYWORDS - KEYWORD_VALUES.keys() == {"args", "processing_class"}  # `args` by its class


@pytest.mark.parametrize(("rows", "facts"), [(None, None), (3, None), ("rows", None), ([], 3), ([], "facts")])
def test_rows_and_facts_of_a_run(tmp_path, rows, facts):
    name = "train_dataset" if facts is None else "facts"
    arguments = {"train_dataset": rows, "data_collator": collate, "facts": facts}
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        JanusProSFTTrainer(load_model(), config_for(tmp_path), processing_class=load_processor(), **arguments)


def test_a_codec_is_one(tmp_path):
    for model in (None, 3, load_model()):
        with pytest.raises(TypeError, match="`model` must be a JanusProVQModel"):
            CodecTrainer(model)
