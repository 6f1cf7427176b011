"""Scores of the understanding benchmarks, computed by hand for every layout of their files."""

import json
import os

import pytest
from understanding_data import (
    IMAGE,
    MME,
    POPE,
    POPE_ANSWERS,
    Answerer,
    base64_image,
    mme_rows,
    pope_tsv,
    write_tsv,
)

from janus_hf.evaluation.benchmarks.answers import COGNITION, PERCEPTION
from janus_hf.evaluation.benchmarks.questions import read_questions
from janus_hf.evaluation.benchmarks.understanding import run_understanding


def test_pope_by_hand(tmp_path, monkeypatch):
    pipe = Answerer(monkeypatch, POPE_ANSWERS)
    report = run_understanding(pipe, "pope", pope_tsv(tmp_path / "POPE.tsv"), batch_size=4)
    assert report.metrics == pytest.approx(
        {
            "random": 40.0,  # 1 and 4 of five
            "random precision": 50.0,  # answered with yes: 1 and 3
            "random recall": 100 / 3,  # are yes: 1, 2 and 5, which was not parsed
            "random F1": 40.0,  # 2 * 50 * 33.3 / 83.3
            "random yes": 40.0,
            "popular": 100.0,
            "popular precision": 100.0,
            "popular recall": 100.0,
            "popular F1": 100.0,
            "popular yes": 50.0,
            "adversarial": 100.0,
            "adversarial precision": 0.0,
            "adversarial recall": 0.0,
            "adversarial F1": 0.0,
            "adversarial yes": 0.0,
            "overall": 100 * 6 / 9,
            "unparsed": 100 / 6,
        }
    )
    assert (report.primary, report.value, report.failures) == ("random F1", pytest.approx(40), [])
    assert [row["correct"] for row in report.rows] == [True, False, False, True, False, True]
    assert [row["parsed"] for row in report.rows] == ["yes", "no", "yes", "no", None, "no"]
    assert pipe.asked[0] == {
        "role": "user",
        "content": "<image_placeholder>\nIs there thing 1?\nAnswer the question using a single word or phrase.",
        "images": [IMAGE],
    }
    options = {"max_new_tokens": 2048, "system_prompt": "", "roles": ("User", "Assistant")}
    assert pipe.options == [options, options]
    assert "| **random F1** | 40.00 | 87.40 |" in report.to_markdown()


def test_pope_in_its_own_layout(tmp_path, monkeypatch):
    for split in ("random", "adversarial"):
        rows = [
            {
                "question_id": int(index),
                "image": f"{index}.jpg",
                "text": f"Is there thing {index}?",
                "label": answer.lower(),
            }
            for index, answer, splits, _ in POPE
            if split in splits.split(",")
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"coco_pope_{split}.json").write_text(lines)
    pipe = Answerer(monkeypatch, POPE_ANSWERS)
    report = run_understanding(pipe, "pope", tmp_path, images="images")
    assert report.value == pytest.approx(40)
    assert report.metrics["adversarial"] == 100
    assert [row["index"] for row in report.rows][-2:] == ["adversarial-4", "adversarial-6"]
    assert pipe.asked[0]["images"] == [os.path.join("images", "1.jpg")]
    single = run_understanding(pipe, "pope", tmp_path / "coco_pope_adversarial.json")
    assert (single.primary, single.value) == ("adversarial", 100)  # the paper's split is missing
    assert pipe.asked[-1]["images"] == [str(tmp_path / "6.jpg")]
    (tmp_path / "questions.json").write_text("{}")
    with pytest.raises(ValueError, match="rename it"):
        read_questions("pope", tmp_path / "questions.json")


def test_mme_by_hand(tmp_path, monkeypatch):
    rows, answers = mme_rows(MME)
    report = run_understanding(Answerer(monkeypatch, answers), "mme", write_tsv(tmp_path / "MME.tsv", rows))
    # existence: 6 of 8 correct, both of images a and c of four; OCR: 2 of 4, both of image e of two; code: all.
    expected = {"existence": 75 + 50, "existence accuracy": 75, "existence accuracy+": 50}
    expected |= {"OCR": 50 + 50, "OCR accuracy": 50, "OCR accuracy+": 50}
    expected |= {"code_reasoning": 200, "code_reasoning accuracy": 100, "code_reasoning accuracy+": 100}
    expected |= {"perception": 225, "cognition": 200, "unparsed": 100 / 14}
    assert report.metrics == pytest.approx(expected)
    assert (report.primary, report.value) == ("perception", 225)
    missing = [task for task in (*PERCEPTION, *COGNITION) if task not in ("existence", "OCR", "code_reasoning")]
    assert len(missing) == 11
    assert f"The sums lack {', '.join(missing)}." in report.protocol


def test_all_of_mme_correct_is_2800(tmp_path, monkeypatch):
    rows, answers = mme_rows({(task, "x.jpg"): ("Yes", "No") for task in (*PERCEPTION, *COGNITION)})
    report = run_understanding(Answerer(monkeypatch, answers), "mme", write_tsv(tmp_path / "MME.tsv", rows))
    assert (report.metrics["perception"], report.metrics["cognition"]) == (2000, 800)
    assert "lack" not in report.protocol
    part = run_understanding(Answerer(monkeypatch, answers), "mme", tmp_path / "MME.tsv", limit=3)
    task = rows[2]["category"]
    assert (part.metrics[f"{task} accuracy"], part.metrics[f"{task} accuracy+"]) == (
        100,
        0,
    )  # half a pair does not count
    assert "Only the first 3 questions." in part.protocol


def mcq(index, answer, **more):
    row = {
        "index": index,
        "question": f"Which {index}?",
        "A": "a dog",
        "B": "a cat",
        "answer": answer,
        "image": IMAGE,
    }
    return row | {"category": "animals", "l2-category": "things"} | more


def test_multiple_choice_by_hand(tmp_path, monkeypatch):
    rows = [
        mcq("1", "A", hint="Look.", C="", D="None"),
        mcq("2", "B", hint="nan"),
        mcq("3", "B", category="colours"),
        mcq("4", "A"),
        mcq("1000001", "B"),  # the same question with rotated options
    ]
    answers = {"Which 1?": "A", "Which 2?": "A. a dog", "Which 3?": "(B)", "Which 4?": "a dog"}
    pipe = Answerer(monkeypatch, answers)
    report = run_understanding(pipe, "mmbench", write_tsv(tmp_path / "MMBench.tsv", rows))
    assert report.metrics == pytest.approx(
        {"overall": 50.0, "animals": 100 / 3, "colours": 100.0, "things": 50.0, "unparsed": 25.0}
    )
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert pipe.asked[0]["content"] == (
        f"<image_placeholder>\nHint: Look.\nWhich 1?\nA. a dog\nB. a cat\nD. None\n{letter}"
    )
    assert pipe.asked[1]["content"] == f"<image_placeholder>\nWhich 2?\nA. a dog\nB. a cat\n{letter}"
    seed = run_understanding(pipe, "seed", write_tsv(tmp_path / "SEED.tsv", rows[:4]))
    assert seed.metrics == report.metrics
    with pytest.raises(ValueError, match="test parts come without"):
        read_questions("seed", write_tsv(tmp_path / "SEED.tsv", [mcq("1", "")]))


def test_mmmu_is_the_validation_part_with_all_its_images(tmp_path, monkeypatch):
    other = base64_image(1)
    rows = [
        mcq("dev_1", "A", split="dev"),
        mcq("val_1", "A", split="validation", image=json.dumps([IMAGE, other])),
        mcq("val_2", "B", split="validation", image=repr([other])),  # Python's list, as VLMEvalKit writes it
        mcq("val_3", "24", split="validation", A="", B=""),  # an open question
    ]
    pipe = Answerer(monkeypatch, {"Which val_1?": "A", "Which val_2?": "A", "Which val_3?": "24."})
    report = run_understanding(pipe, "mmmu", write_tsv(tmp_path / "MMMU.tsv", rows))
    assert report.value == pytest.approx(200 / 3)
    assert pipe.asked[0]["images"] == [IMAGE, other]
    assert pipe.asked[0]["content"].startswith("<image_placeholder><image_placeholder>\nWhich")
    assert pipe.asked[1]["images"] == [other]
    assert pipe.asked[2]["content"].endswith("Which val_3?\nAnswer the question directly. ")
    with pytest.raises(ValueError, match="must hold questions of the validation part"):
        read_questions("mmmu", write_tsv(tmp_path / "dev.tsv", rows[:1]))


def test_gqa_in_both_layouts(tmp_path, monkeypatch):
    right = {"1": "T-shirt", "2": "left", "3": "no"}
    given = {"What 1?": "tshirt.", "What 2?": "on the left", "What 3?": "No"}
    pipe = Answerer(monkeypatch, given)
    rows = [{"index": k, "question": f"What {k}?", "answer": v, "image": IMAGE} for k, v in right.items()]
    report = run_understanding(pipe, "gqa", write_tsv(tmp_path / "GQA.tsv", rows))
    assert report.metrics == pytest.approx({"overall": 200 / 3})
    assert pipe.asked[0]["content"] == (
        "<image_placeholder>What 1?\nAnswer the question using a single word or phrase."
    )
    kinds = {"1": "query", "2": "query", "3": "verify"}
    content = {
        k: {"imageId": f"n{k}", "question": f"What {k}?", "answer": v, "types": {"structural": kinds[k]}}
        for k, v in right.items()
    }
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(json.dumps(content))
    report = run_understanding(pipe, "gqa", path, images=tmp_path / "images")
    assert report.metrics == pytest.approx({"overall": 200 / 3, "query": 50, "verify": 100})
    assert pipe.asked[-1]["images"] == [str(tmp_path / "images" / "n3.jpg")]


def test_mmvet_is_left_to_its_judge(tmp_path, monkeypatch):
    rows = [{"index": k, "question": f"Why {k}?", "answer": "x", "image": IMAGE} for k in ("0", "1", "v1_2")]
    pipe = Answerer(monkeypatch, {"Why 0?": "Because.", "Why 1?": "", "Why v1_2?": "Ünd so."})
    path = write_tsv(tmp_path / "MMVet.tsv", rows)
    with pytest.raises(ValueError, match="`folder` must be a path for MM-Vet"):
        run_understanding(pipe, "mmvet", path)
    report = run_understanding(pipe, "mmvet", path, folder=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "mmvet.json").read_text(encoding="utf-8"))
    assert written == {"v1_0": "Because.", "v1_2": "Ünd so."}
    assert report.metrics == {}
    assert report.failures == ["1: empty answer"]
    assert len(report.rows) == 2
    assert pipe.asked[0]["content"] == "<image_placeholder>\nWhy 0?"
    assert pipe.options[0]["system_prompt"].startswith("You are a helpful assistant. Please answer truthfully")
