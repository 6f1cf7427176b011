"""The benchmarks' data: downloaded once, checked, or named to the user."""

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import pytest
from accelerate import PartialState

from janus_hf.evaluation import downloads
from janus_hf.evaluation.evaluators import make_evaluator


class Server(ThreadingHTTPServer):
    """A server that sends its `content` after a delay and counts the requests."""

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
    """A local server that has the data of every benchmark, and an empty cache to download them to."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        content = {name: (server.url, checksum) for name, (_, checksum) in downloads.SOURCES.items()}
        monkeypatch.setattr(downloads, "SOURCES", content)
        monkeypatch.setattr(downloads, "HF_HOME", str(tmp_path))
        yield server
        server.shutdown()
        thread.join()


def test_processes_wait_for_one_download_without_a_barrier(server, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a collective call times out during a long download")

    monkeypatch.setattr(PartialState, "wait_for_everyone", refuse)
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: downloads.find_data("geneval"), range(3)))
    assert paths == [tmp_path / "janus_hf" / f"127.0.0.1:{server.server_port}" / "data" / "THING.tsv"] * 3
    assert paths[0].read_bytes() == server.content
    assert server.requests == 1


def test_other_bytes_than_published_are_refused(server, tmp_path):
    found = hashlib.md5(server.content).hexdigest()
    expected = downloads.SOURCES["pope"][1]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"MD5 sum {expected}.* got {found}. The file was kept.*--data") as said:
            downloads.find_data("pope")
    assert server.requests == 1  # it was kept: another try does not fetch it again
    kept = next(tmp_path.rglob("THING.tsv"))
    assert str(kept) in str(said.value)
    assert downloads.find_data("pope", kept) == kept


@pytest.mark.parametrize("how", ["not there", "cut off", "offline"])
def test_a_failed_download_says_where_to_get_the_data(server, tmp_path, monkeypatch, how):
    server.content, server.announced = {"not there": (None, None)}.get(how, (b"half", 8))
    if how == "offline":
        monkeypatch.setattr(downloads, "urlopen", lambda *a, **k: (_ for _ in ()).throw(URLError("no network")))
    reason = {"not there": "404", "cut off": "4 of 8 bytes|IncompleteRead|more expected", "offline": "no network"}[how]
    with pytest.raises(FileNotFoundError, match=f"{server.url} could not be .*({reason}).*--data FILE, or put it at"):
        make_evaluator("mme")
    assert not list(tmp_path.rglob("THING.tsv"))


def test_data_without_a_checksum_are_of_a_commit_or_compared_by_content():
    """The settings of a run contain a hash of its prompts, and those of the judge a hash of its questions."""
    url, _ = downloads.SOURCES["geneval"]
    assert re.fullmatch(r".*/djghosh13/geneval/[0-9a-f]{40}/prompts/evaluation_metadata.jsonl", url)
    assert {name for name, (_, checksum) in downloads.SOURCES.items() if checksum is None} == {"geneval", "dpg"}
