"""Parsing of answers, and files of the understanding benchmarks that are not in the expected layout."""

import pytest
from understanding_data import IMAGE, MME, Answerer, mme_rows, write_tsv

from janus_hf.evaluation.benchmarks.answers import normalise, parse_letter, parse_yes_no
from janus_hf.evaluation.benchmarks.questions import read_questions
from janus_hf.evaluation.benchmarks.understanding import run_understanding


def test_mme_needs_pairs(tmp_path):
    rows, _ = mme_rows(MME)
    with pytest.raises(ValueError, match=r"f.jpg \(1\)"):
        read_questions("mme", write_tsv(tmp_path / "MME.tsv", rows[:-1]))


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


def test_files_that_are_not_as_expected(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"MMBench_DEV_EN.tsv of .* \(Apache-2.0\)"):
        read_questions("mmbench", tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="Known: pope, mme, "):
        read_questions("geneval", tmp_path)
    path = write_tsv(tmp_path / "x.tsv", [{"index": "1", "question": "?", "image": IMAGE}])
    with pytest.raises(ValueError, match=r"index, question, answer, A, B, got .*: \['answer', 'A', 'B'\] are missing"):
        read_questions("seed", path)
    write_tsv(path, [{"index": "1", "question": "?", "answer": "x"}])
    with pytest.raises(ValueError, match="a column image"):
        read_questions("gqa", path)
    row = {"index": "1", "question": "?", "answer": "x", "image": IMAGE}
    with pytest.raises(ValueError, match=r"repeats \['1'\]"):
        read_questions("gqa", write_tsv(path, [row, row]))
    with pytest.raises(ValueError, match="name a row that has an image, got '7'"):
        read_questions("gqa", write_tsv(path, [row | {"image": "7"}]))
    with pytest.raises(ValueError, match="the answers yes and no, got 'x' for index 1"):
        read_questions("pope", write_tsv(path, [row | {"category": "random"}]))
    with pytest.raises(ValueError, match="must hold questions, got none"):
        read_questions("gqa", _header_of(path))
    (tmp_path / "x.json").write_text('{"1": {"question": "?"}}')
    with pytest.raises(ValueError, match="data of mme must be a .tsv file, got x.json"):
        read_questions("mme", tmp_path / "x.json")
    with pytest.raises(ValueError, match="question 1 must be an object with 'imageId', 'question', 'answer'"):
        read_questions("gqa", tmp_path / "x.json")
    with pytest.raises(ValueError, match="at least 1"):
        run_understanding(Answerer(monkeypatch, {}), "gqa", path, batch_size=0)


def _header_of(path):
    path.write_text(path.read_text().splitlines()[0] + "\n")
    return path
