"""Reports, the folder they lie in, and the data they are about."""

from urllib.error import URLError

import pytest
import torch

from janus_hf.evaluation import sources
from janus_hf.evaluation.evaluators import Understanding, make_evaluator
from janus_hf.evaluation.folder import hash_weights, open_run, write_atomically
from janus_hf.evaluation.paper import BENCHMARKS
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
    assert compare({"run": empty}).splitlines()[-1] == "| run | pope | random F1 | - | 87.40 | 86.20 | 87.00 | 1 |"


def test_the_primary_metric_must_be_one():
    with pytest.raises(ValueError, match=r"'overall' is not among \['random F1', 'unparsed'\]"):
        report(primary="overall")


def test_a_folder_without_a_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark has finished there"):
        Report.load(tmp_path)


def test_a_folder_belongs_to_its_settings(tmp_path):
    settings = {"seed": 0, "tags": ("a", "b")}
    assert open_run(tmp_path / "run", settings) == open_run(tmp_path / "run", settings)
    with pytest.raises(ValueError, match="limit: None there, 5 now\n  seed: 0 there, 1 now\nChoose another"):
        open_run(tmp_path / "run", settings | {"seed": 1, "limit": 5})


def test_files_are_whole_or_not_there(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", b"first")
    write_atomically(tmp_path / "a" / "b.txt", b"second")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"second"


def test_weights_are_told_apart_by_their_bytes():
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    before = hash_weights(module)
    assert hash_weights(module) == before
    with torch.no_grad():
        module.bias[0] += 1
    assert hash_weights(module) != before
    assert hash_weights(torch.nn.Linear(3, 2, device="meta")) is None


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HF_HOME", str(tmp_path))
    return tmp_path / "janus_hf"


def test_data_are_downloaded_once(cache, monkeypatch):
    downloads = []

    def download(url, target, progress):
        downloads.append(url)
        with open(target, "w") as file:
            file.write("{}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    paths = [sources.find_data("geneval") for _ in range(2)]
    assert paths == [cache / "evaluation_metadata.jsonl"] * 2
    assert downloads == [sources.SOURCES["geneval"][0]]


def test_other_bytes_than_published_are_warned_of(cache, monkeypatch):
    cache.mkdir()
    (cache / "POPE.tsv").write_text("index\n")
    warnings = []
    monkeypatch.setattr(sources.logger, "warning", lambda text, *values: warnings.append(text % values))
    sources.find_data("pope")
    assert len(warnings) == 1
    assert "not the version of POPE whose checksum is on record" in warnings[0]


def test_offline_says_where_to_get_the_data(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*no network.* --data"):
        make_evaluator("mme")
    assert not (cache / "MME.tsv").exists()


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"shapes"}))
def test_a_missing_file_says_where_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*none.*The data of"):
        make_evaluator(name, tmp_path / "none")


@pytest.mark.parametrize("name", ["geneval2", "wise"])
def test_what_may_not_be_handed_on_is_not_downloaded(name):
    with pytest.raises(FileNotFoundError, match="name it with --data"):
        make_evaluator(name)


def test_declared_primary_metrics_are_the_papers():
    declared = {name: Understanding(name, "x").primary_metric for name in ("pope", "mme", "gqa")}
    assert declared == {"pope": "random F1", "mme": "perception", "gqa": "overall"}
