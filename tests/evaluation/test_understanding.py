"""The built-in runner: files of every layout, scores by hand, resuming, two processes; and on the small model."""

import base64
import csv
import io
import json
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import understanding
from janus_hf.evaluation.benchmarks.answers import COGNITION, PERCEPTION, normalise, parse_letter, parse_yes_no
from janus_hf.evaluation.benchmarks.questions import read_questions
from janus_hf.evaluation.benchmarks.understanding import run_understanding
from janus_hf.shapes import ask, picture, random_scene


def base64_picture(seed=0):
    buffer = io.BytesIO()
    picture(random_scene(np.random.default_rng(seed))).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = base64_picture()


def write_tsv(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", restval="")
        table.writeheader()
        table.writerows(rows)
    return path


class Answerer:
    """Stands for pipeline and model: answers by the question's text, and notes what it was asked."""

    def __init__(self, monkeypatch, answers, stop_after=None):
        self.model = torch.nn.Identity()  # whose weights are always the same
        self.model.config, self.model.dtype = SimpleNamespace(), torch.float32
        self.processor = SimpleNamespace(image_token="<image_placeholder>")
        self.answers, self.stop_after, self.asked, self.options = answers, stop_after, [], []
        monkeypatch.setattr(understanding, "answer", self.answer)

    def answer(self, model, processor, conversations, **options):
        assert model is self.model
        self.options.append(options)
        given = []
        for (turn,) in conversations:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(turn)
            given.append(next(text for question, text in self.answers.items() if question in turn["content"]))
        return given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("Yes", "yes"),
        (" NO. ", "no"),
        ("No .", "no"),
        ("Yes, there is", None),
        ("yes no", None),
        ("Yes!", None),
        ("yes..", None),
        ("not", None),
        ("", None),
    ],
)
def test_yes_and_no_are_parsed_strictly(text, expected):
    assert parse_yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        (" B.", "B"),
        ("(B)", "B"),
        ("B:", "B"),
        ("B. a dog", "B"),
        ("B) a dog", "B"),
        ("(B) a dog", "B"),
        ("B: a dog", "B"),
        ("b", None),
        ("D", None),  # not among the options
        ("BC", None),
        ("A dog", None),  # an article, not an option
        ("The answer is B", None),
        ("", None),
    ],
)
def test_letters_are_parsed_strictly(text, expected):
    assert parse_letter(text, "ABC") == expected


def test_normalise():
    assert normalise("  The T-shirt, \n please. ") == "the tshirt please"


# POPE: (index, answer, splits, given); all three splits share questions, as in VLMEvalKit's table.
POPE = [
    ("1", "Yes", "random,popular", "Yes"),
    ("2", "Yes", "random", "No."),
    ("3", "No", "random", "yes"),
    ("4", "No", "random,popular,adversarial", "no"),
    ("5", "Yes", "random", "Yes, there is a dog."),
    ("6", "No", "adversarial", "no"),
]


def pope_tsv(path):
    rows = [
        {
            "index": index,
            "image": PICTURE if index == "4" else "4",  # the others share the picture of a later row
            "question": f"Is there thing {index}? Please answer yes or no.",
            "answer": answer,
            "category": splits,
        }
        for index, answer, splits, _ in POPE
    ]
    return write_tsv(path, rows)


POPE_ANSWERS = {f"thing {index}?": given for index, _, _, given in POPE}


def test_pope_by_hand(tmp_path, monkeypatch):
    pipe = Answerer(monkeypatch, POPE_ANSWERS)
    report = run_understanding(pipe, "pope", pope_tsv(tmp_path / "POPE.tsv"), batch_size=4)
    assert report.metrics == pytest.approx(
        {
            "random": 40.0,  # 1 and 4 of five
            "random precision": 50.0,  # said yes: 1 and 3
            "random recall": 100 / 3,  # are yes: 1, 2 and 5, which was not understood
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
        "images": [PICTURE],
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
    report = run_understanding(pipe, "pope", tmp_path, images="pictures")
    assert report.value == pytest.approx(40)
    assert report.metrics["adversarial"] == 100
    assert [row["index"] for row in report.rows][-2:] == ["adversarial-4", "adversarial-6"]
    assert pipe.asked[0]["images"] == [os.path.join("pictures", "1.jpg")]
    single = run_understanding(pipe, "pope", tmp_path / "coco_pope_adversarial.json")
    assert (single.primary, single.value) == ("adversarial", 100)  # the paper's split is not there
    assert pipe.asked[-1]["images"] == [str(tmp_path / "6.jpg")]
    (tmp_path / "questions.json").write_text("{}")
    with pytest.raises(ValueError, match="Rename it"):
        read_questions("pope", tmp_path / "questions.json")


def mme_rows(verdicts):
    """`{(task, picture): (first answered, second answered)}`; the right answers are yes and no."""
    rows, answers = [], {}
    for (task, name), given in verdicts.items():
        for number, (right, text) in enumerate(zip(("Yes", "No"), given, strict=True)):
            question = f"{task} {name} {number}?"
            rows.append(
                {
                    "index": str(len(rows)),
                    "category": task,
                    "image_path": name,
                    "question": question,
                    "answer": right,
                    "image": PICTURE,
                }
            )
            answers[question] = text
    return rows, answers


MME = {
    ("existence", "a.jpg"): ("Yes", "No"),
    ("existence", "b.jpg"): ("Yes", "Yes"),
    ("existence", "c.jpg"): ("yes.", "no."),
    ("existence", "d.jpg"): ("I think so", "No"),
    ("OCR", "a.jpg"): ("No", "Yes"),  # the same name as in another task is another picture
    ("OCR", "e.jpg"): ("Yes", "No"),
    ("code_reasoning", "f.jpg"): ("Yes", "No"),
}


def test_mme_by_hand(tmp_path, monkeypatch):
    rows, answers = mme_rows(MME)
    report = run_understanding(Answerer(monkeypatch, answers), "mme", write_tsv(tmp_path / "MME.tsv", rows))
    # existence: 6 of 8 right, pictures a and c of four wholly; OCR: 2 of 4, picture e of two; code: all.
    expected = {"existence": 75 + 50, "existence accuracy": 75, "existence accuracy+": 50}
    expected |= {"OCR": 50 + 50, "OCR accuracy": 50, "OCR accuracy+": 50}
    expected |= {"code_reasoning": 200, "code_reasoning accuracy": 100, "code_reasoning accuracy+": 100}
    expected |= {"perception": 225, "cognition": 200, "unparsed": 100 / 14}
    assert report.metrics == pytest.approx(expected)
    assert (report.primary, report.value) == ("perception", 225)
    missing = [task for task in (*PERCEPTION, *COGNITION) if task not in ("existence", "OCR", "code_reasoning")]
    assert len(missing) == 11
    assert f"The sums lack {', '.join(missing)}." in report.protocol


def test_all_of_mme_right_is_2800(tmp_path, monkeypatch):
    rows, answers = mme_rows({(task, "x.jpg"): ("Yes", "No") for task in (*PERCEPTION, *COGNITION)})
    report = run_understanding(Answerer(monkeypatch, answers), "mme", write_tsv(tmp_path / "MME.tsv", rows))
    assert (report.metrics["perception"], report.metrics["cognition"]) == (2000, 800)
    assert "lack" not in report.protocol
    part = run_understanding(Answerer(monkeypatch, answers), "mme", tmp_path / "MME.tsv", limit=3)
    task = rows[2]["category"]
    assert (part.metrics[f"{task} accuracy"], part.metrics[f"{task} accuracy+"]) == (100, 0)  # half a pair is none
    assert "Only the first 3 questions." in part.protocol


def test_mme_needs_pairs(tmp_path):
    rows, _ = mme_rows(MME)
    with pytest.raises(ValueError, match=r"f.jpg \(1\)"):
        read_questions("mme", write_tsv(tmp_path / "MME.tsv", rows[:-1]))


def mcq(index, answer, **more):
    row = {
        "index": index,
        "question": f"Which {index}?",
        "A": "a dog",
        "B": "a cat",
        "answer": answer,
        "image": PICTURE,
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
    with pytest.raises(ValueError, match="Test parts come without answers"):
        read_questions("seed", write_tsv(tmp_path / "SEED.tsv", [mcq("1", "")]))


def test_mmmu_is_the_validation_part_with_all_its_pictures(tmp_path, monkeypatch):
    other = base64_picture(1)
    rows = [
        mcq("dev_1", "A", split="dev"),
        mcq("val_1", "A", split="validation", image=json.dumps([PICTURE, other])),
        mcq("val_2", "B", split="validation", image=repr([other])),  # Python's list, as VLMEvalKit writes it
        mcq("val_3", "24", split="validation", A="", B=""),  # an open question
    ]
    pipe = Answerer(monkeypatch, {"Which val_1?": "A", "Which val_2?": "A", "Which val_3?": "24."})
    report = run_understanding(pipe, "mmmu", write_tsv(tmp_path / "MMMU.tsv", rows))
    assert report.value == pytest.approx(200 / 3)
    assert pipe.asked[0]["images"] == [PICTURE, other]
    assert pipe.asked[0]["content"].startswith("<image_placeholder><image_placeholder>\nWhich")
    assert pipe.asked[1]["images"] == [other]
    assert pipe.asked[2]["content"].endswith("Which val_3?\nAnswer the question directly. ")
    with pytest.raises(ValueError, match="Expected questions of the validation part"):
        read_questions("mmmu", write_tsv(tmp_path / "dev.tsv", rows[:1]))


def test_gqa_in_both_layouts(tmp_path, monkeypatch):
    right = {"1": "T-shirt", "2": "left", "3": "no"}
    given = {"What 1?": "tshirt.", "What 2?": "on the left", "What 3?": "No"}
    pipe = Answerer(monkeypatch, given)
    rows = [{"index": k, "question": f"What {k}?", "answer": v, "image": PICTURE} for k, v in right.items()]
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
    rows = [{"index": k, "question": f"Why {k}?", "answer": "x", "image": PICTURE} for k in ("0", "1", "v1_2")]
    pipe = Answerer(monkeypatch, {"Why 0?": "Because.", "Why 1?": "", "Why v1_2?": "Ünd so."})
    path = write_tsv(tmp_path / "MMVet.tsv", rows)
    with pytest.raises(ValueError, match="Expected a folder"):
        run_understanding(pipe, "mmvet", path)
    report = run_understanding(pipe, "mmvet", path, folder=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "mmvet.json").read_text(encoding="utf-8"))
    assert written == {"v1_0": "Because.", "v1_2": "Ünd so."}
    assert report.metrics == {}
    assert report.failures == ["1: empty answer"]
    assert len(report.rows) == 2
    assert pipe.asked[0]["content"] == "<image_placeholder>\nWhy 0?"
    assert pipe.options[0]["system_prompt"].startswith("You are a helpful assistant. Please answer truthfully")


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data, folder = pope_tsv(tmp_path / "POPE.tsv"), tmp_path / "run"
    whole = run_understanding(Answerer(monkeypatch, POPE_ANSWERS), "pope", data)
    with pytest.raises(KeyboardInterrupt):
        run_understanding(Answerer(monkeypatch, POPE_ANSWERS, stop_after=3), "pope", data, folder=folder, batch_size=2)
    with (folder / "answers.rank0.jsonl").open("ab") as file:
        file.write('{"index": "3", "answer": "ü'.encode()[:-1])  # killed while writing
    pipe = Answerer(monkeypatch, POPE_ANSWERS)
    report = run_understanding(pipe, "pope", data, folder=folder, batch_size=2)
    assert len(pipe.asked) == 4  # the first batch was kept
    assert (report.rows, report.metrics) == (whole.rows, whole.metrics)
    pipe = Answerer(monkeypatch, {})
    assert run_understanding(pipe, "pope", data, folder=folder).rows == whole.rows
    assert pipe.asked == []
    with pytest.raises(ValueError, match="limit: None there, 2 now"):
        run_understanding(pipe, "pope", data, folder=folder, limit=2)


def _one_of_two(rank, port, data, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    PartialState(cpu=True)
    with pytest.MonkeyPatch.context() as patch:
        pipe = Answerer(patch, POPE_ANSWERS)
        report = run_understanding(pipe, "pope", data, folder=os.path.join(folder, "run"), batch_size=2)
        assert PartialState().num_processes == 2
    report.save(os.path.join(folder, f"report{rank}"))
    with open(os.path.join(folder, f"asked{rank}"), "w") as file:
        file.write(str(len(pipe.asked)))
    PartialState().wait_for_everyone()
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_questions(tmp_path, monkeypatch):
    data = pope_tsv(tmp_path / "POPE.tsv")
    alone = run_understanding(Answerer(monkeypatch, POPE_ANSWERS), "pope", data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, data, str(tmp_path))
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")
    for rank in range(2):
        report = understanding.Report.load(tmp_path / f"report{rank}")
        assert (report.metrics, report.rows, report.failures) == (alone.metrics, alone.rows, [])
        assert (tmp_path / f"asked{rank}").read_text() == "3"
    assert sorted(path.name for path in (tmp_path / "run").glob("answers.*")) == [
        "answers.rank0.jsonl",
        "answers.rank1.jsonl",
    ]
    again = Answerer(monkeypatch, {})  # one process goes on where two stopped
    assert run_understanding(again, "pope", data, folder=tmp_path / "run").rows == alone.rows


@pytest.fixture(scope="module")
def pipe():
    return JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")


def shapes_tsv(path, count=7):
    """Questions of the small world with pictures of their own, and two that cannot be asked."""
    rng = np.random.default_rng(3)
    rows = []
    for index in range(count):
        scene = random_scene(rng)
        buffer = io.BytesIO()
        picture(scene).save(buffer, format="PNG")
        asked = ask(scene, rng)
        question = asked.question if index % 2 else f"{asked.question} {asked.question}"  # of different lengths
        image = base64.b64encode(buffer.getvalue()).decode()
        rows.append({"index": str(index), "question": question, "answer": asked.answer, "image": image})
    rows[2]["image"] = json.dumps([rows[2]["image"], PICTURE])
    rows[3]["image"] = PICTURE[:200]  # cut off
    rows[5]["image"] = ""
    return write_tsv(path, rows)


def test_batched_as_singly_on_the_small_model(pipe, tmp_path):
    data = shapes_tsv(tmp_path / "GQA.tsv")
    batched = run_understanding(pipe, "gqa", data, batch_size=4, max_new_tokens=8)
    single = run_understanding(pipe, "gqa", data, batch_size=1, max_new_tokens=8)
    assert batched.rows == single.rows
    assert batched.metrics == single.metrics
    assert [row["index"] for row in batched.rows] == ["0", "1", "2", "4", "6"]
    assert len({row["given"] for row in batched.rows}) > 1  # it does look
    spoiled, none = batched.failures
    assert spoiled.startswith("3: ")
    assert none == "5: no picture"
    assert batched.failed_share == pytest.approx(2 / 7)
    assert len(batched.settings["weights_sha256"]) == 64


def test_a_question_that_does_not_fit_is_a_failure(pipe, tmp_path):
    rows = [{"index": "0", "question": "circle " * 300, "answer": "x", "image": PICTURE}]
    rows += [{"index": "1", "question": "is there a circle ?", "answer": "x", "image": PICTURE}]
    report = run_understanding(pipe, "gqa", write_tsv(tmp_path / "GQA.tsv", rows), max_new_tokens=4)
    assert [row["index"] for row in report.rows] == ["1"]
    assert "the model's context holds 256" in report.failures[0]


def test_files_that_are_not_as_expected(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"MMBench_DEV_EN.tsv of .* \(Apache-2.0\)"):
        read_questions("mmbench", tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="Known: pope, mme, "):
        read_questions("geneval", tmp_path)
    path = write_tsv(tmp_path / "x.tsv", [{"index": "1", "question": "?", "image": PICTURE}])
    with pytest.raises(ValueError, match=r"index, question, answer, A, B .*; \['answer', 'A', 'B'\] are missing of"):
        read_questions("seed", path)
    write_tsv(path, [{"index": "1", "question": "?", "answer": "x"}])
    with pytest.raises(ValueError, match="a column image"):
        read_questions("gqa", path)
    row = {"index": "1", "question": "?", "answer": "x", "image": PICTURE}
    with pytest.raises(ValueError, match=r"repeats \['1'\]"):
        read_questions("gqa", write_tsv(path, [row, row]))
    with pytest.raises(ValueError, match="name a row that has a picture; it names '7'"):
        read_questions("gqa", write_tsv(path, [row | {"image": "7"}]))
    with pytest.raises(ValueError, match="Expected the answers yes and no; .* 'x' for index 1"):
        read_questions("pope", write_tsv(path, [row | {"category": "random"}]))
    with pytest.raises(ValueError, match="Expected questions;"):
        read_questions("gqa", _header_of(path))
    (tmp_path / "x.json").write_text('{"1": {"question": "?"}}')
    with pytest.raises(ValueError, match="Expected mme as a .tsv file; got x.json"):
        read_questions("mme", tmp_path / "x.json")
    with pytest.raises(ValueError, match="Expected an object with imageId, question, answer in question 1"):
        read_questions("gqa", tmp_path / "x.json")
    with pytest.raises(ValueError, match="at least 1"):
        run_understanding(Answerer(monkeypatch, {}), "gqa", path, batch_size=0)


def _header_of(path):
    path.write_text(path.read_text().splitlines()[0] + "\n")
    return path
