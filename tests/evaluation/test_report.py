"""Reports and their tables beside the papers' numbers."""

import csv

import numpy as np
import pytest

from janus_hf.evaluation.paper import published
from janus_hf.evaluation.report import Report, compare


def report(**changes) -> Report:
    fields = {
        "benchmark": "pope",
        "metrics": {"random F1": 87.5, "unparsed": 0.25},
        "primary": "random F1",
        "protocol": "As published.",
        "settings": {"seed": 0},
        "rows": [{"index": "1", "correct": True}] * 3,
        "failures": ["4: no picture"],
    }
    return Report(**(fields | changes))


def test_saved_is_loaded(tmp_path):
    report().save(tmp_path / "run")
    assert Report.load(tmp_path / "run") == report()
    assert (tmp_path / "run" / "report.md").read_text() == report().to_markdown()


def test_the_table_has_ours_and_the_papers_numbers():
    lines = report().to_markdown().splitlines()
    assert "| **random F1** | 87.50 | 87.40 | 86.20 | 87.00 |" in lines
    assert "| unparsed | 0.25 | - | - | - |" in lines
    assert "Judged: 3. Failed: 1 (25.00 % of all), not in the numbers above." in lines


def test_many_failures_are_counted_and_some_named():
    text = report(failures=[f"{n}: no picture" for n in range(25)]).to_markdown()
    assert "* 19: no picture" in text
    assert "* 20: no picture" not in text
    assert "* ... and 5 more" in text


def test_a_report_without_metrics_has_no_value():
    empty = report(metrics={})
    assert empty.value is None
    assert compare({"run": empty}).splitlines()[-1] == (
        "| run | pope | random F1 | 87.40 | 86.20 | 87.00 | - | 1 | As published. |"
    )


def test_runs_stand_between_the_papers_and_their_protocols():
    head, rule, row = compare({"run": report(protocol="Greedy,\na|b.")}).splitlines()
    assert head.endswith("| Janus-1.3B (paper) | this run | failed | protocol |")
    assert row.endswith(r"| 87.00 | 87.50 | 1 | Greedy, a\|b. |")
    assert rule.count("|") == head.count("|") == row.replace(r"\|", "").count("|")


def test_failures_that_count_as_wrong_are_reported():
    assert "(25.00 % of all), not in the numbers above." in report().to_markdown()
    assert "(25.00 % of all), 1 of them, as wrong, in the numbers" in report(failures_counted=1).to_markdown()


def test_a_notebook_shows_the_tables_and_not_the_rows():
    one = report()
    assert one._repr_markdown_() == one.to_markdown()
    assert "\n" not in repr(one)
    assert len(repr(one)) < 120
    assert f"{len(one.rows)} rows, {len(one.failures)} failures" in repr(one)


def test_the_primary_metric_must_be_one():
    with pytest.raises(ValueError, match=r"got 'overall': choose one of \['random F1', 'unparsed'\]"):
        report(primary="overall")


def test_a_folder_without_a_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark has finished there"):
        Report.load(tmp_path)


def test_papers_numbers_stand_beside_ours():
    assert published("geneval")["Janus-Pro-7B (paper)"]["overall"] == 0.80
    for benchmark in ("geneval", "dpg"):  # the papers' overall is the mean of what they list, except for DPG-Bench
        for scores in published(benchmark).values():
            parts = [value for name, value in scores.items() if name != "overall"]
            if benchmark == "geneval":
                assert np.mean(parts) == pytest.approx(scores["overall"], abs=0.01)
    report = Report("pope", {"random F1": 90.0}, "random F1", "as published")
    table = compare({"mine": report})
    row = next(csv.reader([next(line for line in table.splitlines() if "mine" in line)], delimiter="|"))
    assert [cell.strip() for cell in row[1:-1]] == [
        "mine",
        "pope",
        "random F1",
        "87.40",
        "86.20",
        "87.00",
        "90.00",
        "0",
        "as published",
    ]
