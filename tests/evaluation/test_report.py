"""Reports, the folder they lie in, and the data they are about."""

import hashlib
import json
import re
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import pytest
import torch
from accelerate import PartialState, cpu_offload, disk_offload
from transformers import BitsAndBytesConfig

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation import downloads as sources
from janus_hf.evaluation import run_folder as folder
from janus_hf.evaluation.benchmarks.answers import primary_metric
from janus_hf.evaluation.evaluators import KNOWN, Understanding, make_evaluator
from janus_hf.evaluation.report import Report, compare
from janus_hf.evaluation.run_folder import environments, hash_weights, open_run, run_settings, write_atomically


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


def test_failures_that_count_as_wrong_are_said_to():
    assert "(25.00 % of all), not in the numbers above." in report().to_markdown()
    assert "(25.00 % of all), 1 of them, as wrong, in the numbers" in report(failures_counted=1).to_markdown()


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


def test_a_run_says_how_its_weights_were_quantised(tmp_path):
    def quantised(config) -> dict:
        network = torch.nn.Linear(2, 2)
        network.dtype, network.config = torch.float32, Namespace(**config)
        return run_settings(Namespace(model=network), seed=0)

    plain = quantised({})
    assert plain["quantization"] is None
    asked = quantised({"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=5.0)})
    assert asked["quantization"]["quant_method"] == "bitsandbytes"
    assert asked["quantization"]["llm_int8_threshold"] == 5.0
    assert quantised({"quantization_config": asked["quantization"]})["quantization"] == asked["quantization"]
    assert json.loads(json.dumps(asked)) == asked
    open_run(tmp_path / "run", asked)
    with pytest.raises(ValueError, match="  quantization: .*'bitsandbytes'.* there, None now"):
        open_run(tmp_path / "run", plain)


@pytest.mark.parametrize("written", [{}, {"environment": {"torch": "2.6"}}])
def test_a_folder_that_recorded_no_environments_is_refused_by_its_settings_alone(written, tmp_path):
    """As early versions of this package left them."""
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {"seed": 0}} | written))
    with pytest.raises(ValueError, match="made with other settings:\n  seed: 0 there, 1 now"):
        open_run(tmp_path, {"seed": 1})
    assert environments(tmp_path) == []
    open_run(tmp_path, {"seed": 0})
    assert environments(tmp_path) == environments(None)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"seed": 0}', '{"settings": 3}'])
def test_another_programs_settings_are_told(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expected the settings of a run.*settings.json.*move the file away"):
        open_run(tmp_path, {"seed": 0})


def test_files_are_whole_or_not_there(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", b"first")
    write_atomically(tmp_path / "a" / "b.txt", b"second")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"second"


VERSIONS = {"janus_hf": "0.1", "torch": "2.6", "transformers": "5.23", "device": "cpu", "processes": 1}


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(folder.logger, "warning", lambda text, *values: told.append(text % values))
    return told


def test_other_versions_are_told_and_noted_and_not_refused(tmp_path, monkeypatch, warnings):
    now = dict(VERSIONS)
    monkeypatch.setattr(folder, "environment", lambda: dict(now))
    open_run(tmp_path / "run", {"seed": 0})
    now["processes"] = 2  # moves no number
    open_run(tmp_path / "run", {"seed": 0})
    assert warnings == []
    now |= {"transformers": "5.24", "janus_hf": "0.2"}
    open_run(tmp_path / "run", {"seed": 0})
    assert [line.partition("was made with ")[2].partition(":")[0] for line in warnings] == [
        "janus_hf 0.1, and it goes on with 0.2",
        "transformers 5.23, and it goes on with 5.24",
    ]
    assert environments(tmp_path / "run") == [VERSIONS, VERSIONS | {"processes": 2}, now]
    warnings.clear()
    now |= VERSIONS  # back again: a part was made with the others all the same
    open_run(tmp_path / "run", {"seed": 0})
    assert len(warnings) == 2
    assert len(environments(tmp_path / "run")) == 3


def test_a_report_names_what_its_run_was_made_with(tmp_path, monkeypatch, warnings):
    evaluate = make_evaluator("geneval", detector="shapes", prompts_per_tag=1, images_per_prompt=1, limit=1)
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    now = environments(None)[0]
    monkeypatch.setattr(folder, "environment", lambda: now | {"torch": "1.0"})
    evaluate(pipe, tmp_path)
    monkeypatch.setattr(folder, "environment", lambda: now)
    text = evaluate(pipe, tmp_path).to_markdown()
    assert '"torch": "1.0"' in text
    assert f'"torch": "{torch.__version__}"' in text
    assert any("torch 1.0, and it goes on with" in line for line in warnings)


def test_weights_are_told_apart_by_their_bytes():
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    before = hash_weights(module)
    assert hash_weights(module) == before
    with torch.no_grad():
        module.bias[0] += 1
    assert hash_weights(module) != before


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_are_hashed_where_they_are(place, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = hash_weights(module)
    if place == "cpu":
        cpu_offload(module, torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(module, tmp_path, torch.device("cpu"))
    assert module[0].weight.is_meta
    assert hash_weights(module) == before
    assert module[0].weight.is_meta  # nothing was left in memory


def test_weights_without_values_are_no_checkpoint():
    with pytest.raises(ValueError, match="bias has no values here"):
        hash_weights(torch.nn.Linear(3, 2, device="meta"))


def test_quantised_weights_are_hashed_by_their_parts():
    """A tensor that consists of others, as torchao's do; PyTorch's own example of one."""
    from torch.testing._internal.two_tensor import TwoTensor

    module = torch.nn.Module()
    hashes = set()
    for second in (0.0, 1.0):
        module.weight = torch.nn.Parameter(TwoTensor(torch.zeros(2), torch.full((2,), second)), requires_grad=False)
        hashes |= {hash_weights(module), hash_weights(module)}
    assert len(hashes) == 2


class Server(ThreadingHTTPServer):
    """Gives its `content`, slowly; counts the requests."""

    content, announced, requests = b"{}\n", None, 0

    class RequestHandlerClass(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            time.sleep(0.2)
            if self.server.content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.announced or len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *arguments):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data/THING.tsv"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Where every benchmark's data are, as far as `sources` knows, in a cache of their own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        content = {name: (server.url, checksum) for name, (_, checksum) in sources.SOURCES.items()}
        monkeypatch.setattr(sources, "SOURCES", content)
        monkeypatch.setattr(sources, "HF_HOME", str(tmp_path))
        yield server
        server.shutdown()
        thread.join()


def test_processes_wait_for_one_download_without_a_barrier(server, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a collective call times out during a long download")

    monkeypatch.setattr(PartialState, "wait_for_everyone", refuse)
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: sources.find_data("geneval"), range(3)))
    assert paths == [tmp_path / "janus_hf" / f"127.0.0.1:{server.server_port}" / "data" / "THING.tsv"] * 3
    assert paths[0].read_bytes() == server.content
    assert server.requests == 1


def test_other_bytes_than_published_are_refused(server, tmp_path):
    found = hashlib.md5(server.content).hexdigest()
    expected = sources.SOURCES["pope"][1]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"MD5 sum {expected}.* found {found}. The file was kept.*--data") as said:
            sources.find_data("pope")
    assert server.requests == 1  # it was kept: another try does not fetch it again
    kept = next(tmp_path.rglob("THING.tsv"))
    assert str(kept) in str(said.value)
    assert sources.find_data("pope", kept) == kept


@pytest.mark.parametrize("how", ["not there", "cut off", "offline"])
def test_a_failed_download_says_where_to_get_the_data(server, tmp_path, monkeypatch, how):
    server.content, server.announced = {"not there": (None, None)}.get(how, (b"half", 8))
    if how == "offline":
        monkeypatch.setattr(sources, "urlopen", lambda *a, **k: (_ for _ in ()).throw(URLError("no network")))
    reason = {"not there": "404", "cut off": "4 of 8 bytes|IncompleteRead|more expected", "offline": "no network"}[how]
    with pytest.raises(FileNotFoundError, match=f"{server.url} could not be .*({reason}).*--data FILE, or put it at"):
        make_evaluator("mme")
    assert not list(tmp_path.rglob("THING.tsv"))


def test_what_has_no_checksum_is_of_a_commit_or_compared_by_content():
    """A hash of the prompts is among the settings of every drawing run, one of the questions among the judge's."""
    url, _ = sources.SOURCES["geneval"]
    assert re.fullmatch(r".*/djghosh13/geneval/[0-9a-f]{40}/prompts/evaluation_metadata.jsonl", url)
    assert {name for name, (_, checksum) in sources.SOURCES.items() if checksum is None} == {"geneval", "dpg"}


@pytest.mark.parametrize("name", KNOWN)
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
    assert declared == {name: primary_metric(name) for name in declared}
    assert primary_metric("pope", ["adversarial", "overall"]) == "adversarial"  # a file without the papers' split
