"""Dividing work among processes: shares, gathering, and answers that a journal keeps."""

import pytest

from janus_hf.evaluation.journal import Journal
from janus_hf.evaluation.sharing import share, share_answers


def ask(batch):
    """Return each question in capitals; questions that begin with "bad" fail."""
    return [ValueError(f"{text}!") if text.startswith("bad") else text.upper() for text in batch]


def test_work_comes_in_batches_and_failures_apart():
    batches = []

    def work(batch):
        batches.append(list(batch))
        return [item * item for item in batch if item != 3], [item for item in batch if item == 3]

    results = share(range(5), work, batch_size=2, title="squares", unit="number")
    assert (results, batches) == (([0, 1, 4, 16], [3]), [[0, 1], [2, 3], [4]])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        share([], work, batch_size=0, title="squares", unit="number")


def test_answers_are_kept_and_failed_questions_are_asked_again(tmp_path):
    asked = []

    def record(batch):
        asked.extend(batch)
        return ask(batch)

    options = {"batch_size": 2, "title": "answers", "unit": "question"}
    questions = {"1": "one", "2": "bad two", "3": "three"}
    expected = ({"1": "ONE", "3": "THREE"}, {"2": "bad two!"})
    assert share_answers(questions, record, Journal(tmp_path), **options) == expected
    lines = (tmp_path / "answers.rank0.jsonl").read_text().splitlines()
    assert lines == ['{"index": "1", "answer": "ONE"}', '{"index": "3", "answer": "THREE"}']
    asked.clear()
    assert share_answers(questions, record, Journal(tmp_path), **options) == expected
    assert asked == ["bad two"]
    # An answer to a question that is not asked any more is ignored.
    assert share_answers({"3": "three"}, record, Journal(tmp_path), **options) == ({"3": "THREE"}, {})


def test_a_journal_without_a_folder_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None)
    journal.append({"1": "one"})
    assert journal.read() == {}
    assert not list(tmp_path.iterdir())
