"""Sources at addresses: `memory://` of fsspec, a local HTTP server and the local Hub stand for all of them."""

import bz2
import functools
import gzip
import http.server
import importlib.util
import io
import json
import lzma
import sys
import tarfile
import threading
from pathlib import Path

import datasets
import fsspec
import pytest

from hub_server import File
from janus_hf.data import load_prepared, prepare, prepare_mixture, prepare_rows
from janus_hf.data.schema import SourceError
from janus_hf.data.sources import describe, open_files, open_source
from janus_hf.data.streams.addresses import folder_of, is_address, origin, without_secrets


ROWS = [{"text": f"number {n}"} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def arrow_bytes(kind):
    """Return the rows as a file of this kind."""
    buffer, rows = io.BytesIO(), datasets.Dataset.from_list(ROWS)
    {"parquet": rows.to_parquet, "csv": functools.partial(rows.to_csv, index=False)}[kind](buffer)
    return buffer.getvalue()


def tar_bytes():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for n, row in enumerate(ROWS):
            member = tarfile.TarInfo(f"{n}.txt")
            member.size = len(row["text"])
            archive.addfile(member, io.BytesIO(row["text"].encode()))
    return buffer.getvalue()


# Name of a file -> its content.
FORMATS = {
    "rows.jsonl": lambda: LINES,
    "rows.json": lambda: json.dumps(ROWS).encode(),
    "rows.jsonl.gz": lambda: gzip.compress(LINES),
    "rows.jsonl.bz2": lambda: bz2.compress(LINES),
    "rows.jsonl.xz": lambda: lzma.compress(LINES),
    "rows.csv": lambda: arrow_bytes("csv"),
    "rows.tsv": lambda: arrow_bytes("csv"),
    "rows.parquet": lambda: arrow_bytes("parquet"),
    "rows.txt": lambda: "".join(row["text"] + "\n" for row in ROWS).encode(),
    "rows.tar": tar_bytes,
}


@pytest.fixture
def memory():
    """A function that writes files to memory://, given as name -> content, and returns the address of their folder."""
    files = fsspec.filesystem("memory")

    def store(contents, folder="data"):
        for name, content in contents.items():
            files.pipe_file(f"/{folder}/{name}", content if isinstance(content, bytes) else content.encode())
        return f"memory://{folder}"

    yield store
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def site(tmp_path):
    """A local HTTP server of a folder: `(folder, address, paths that were asked for)`."""
    folder, asked = tmp_path / "site", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def send_head(self):
            asked.append(self.path)
            return super().send_head()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


needs_aiohttp = pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="fsspec reads http by aiohttp")


def texts(rows):
    return [row.get("text") or row.get("txt") for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_files_of_every_format_are_read(name, streaming, memory):
    source = f"{memory({name: FORMATS[name]()})}/{name}"
    options = {"streaming": True} if streaming else {}
    assert texts(open_source(source, **options)) == texts(ROWS)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_a_pattern_matches_are_read_in_the_order_of_their_names(streaming, memory):
    lines = LINES.splitlines(keepends=True)
    files = {"b/1.jsonl": lines[2], "a/2.jsonl": lines[1], "a/1.jsonl": lines[0], "a/README.md": b"about"}
    opened = open_files(f"{memory(files)}/*/*", **({"streaming": True} if streaming else {}))
    assert texts(opened.rows) == texts(ROWS)[:3]
    assert opened.unused == ["memory:///data/a/README.md"]
    assert texts(open_source("memory://data/**/*.jsonl")) == texts(ROWS)[:3]


@needs_aiohttp
@pytest.mark.parametrize("pattern", ["rows.jsonl", "rows.jsonl?token=secret&v=1", "*.jsonl", "[pr]*.jsonl"])
def test_files_of_a_web_server_are_prepared(pattern, site, model, processor, tmp_path):
    folder, address, _ = site
    (folder / "rows.jsonl").write_bytes(LINES)
    done = prepare(f"{address}/{pattern}", tmp_path / "out", model, processor)
    assert len(done) == len(ROWS)
    assert done.meta["source"] == f"{address}/{pattern.replace('token=secret&', '')}"
    assert "secret" not in (tmp_path / "out" / "meta.json").read_text()
    again = prepare(f"{address}/{pattern.replace('secret', 'other')}", tmp_path / "out", model, processor)
    assert len(again) == len(ROWS)


@pytest.fixture
def hub(local_hub, monkeypatch):
    """A function that makes the data set me/data of files on the local Hub."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", local_hub.url)

    def make(files):
        local_hub.create("me/data", "dataset")
        entries = {name: File.of(name, content) for name, content in files.items()}
        local_hub.repositories["dataset", "me/data"].add_commit("heads/main", "files", entries)

    return make


def png(make_image, seed):
    buffer = io.BytesIO()
    make_image(seed).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_repository_are_read(streaming, hub):
    hub({"data/rows.jsonl": LINES, "data/other.csv": b"text\nno\n"})
    download = f"{datasets.config.HF_ENDPOINT}/datasets/me/data/resolve/main/data/rows.jsonl"
    for source in ("hf://datasets/me/data/data/rows.jsonl", "hf://datasets/me/data@main/**/*.jsonl", download):
        assert texts(open_source(source, **({"streaming": True} if streaming else {}))) == texts(ROWS)
    with pytest.raises(SourceError, match="write 'me/data'"):
        open_source("hf://datasets/me/data")


@pytest.mark.parametrize(
    ("source", "options"),
    [("me/data", {"data_files": "rows.jsonl"}), ("hf://datasets/me/data/rows.jsonl", {}), ("me/data", {"name": "a"})],
)
def test_images_in_a_repository_of_tables_are_found(source, options, hub, make_image, model, processor, tmp_path):
    rows = [{"prompt": "a", "image": "images/0.png"}, {"prompt": "b", "image": "images/1.png"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    front = b"---\nconfigs:\n- config_name: a\n  data_files: rows.jsonl\n---\n" if "name" in options else b""
    images = [png(make_image, n) for n in range(2)]
    hub({"README.md": front, "rows.jsonl": lines, "images/0.png": images[0], "images/1.png": images[1]})
    expected = prepare_rows([row | {"image": images[n]} for n, row in enumerate(rows)], model, processor)
    prepared = prepare(source, tmp_path, model, processor, **options)
    for n in range(2):
        assert prepared[n]["input_ids"].tolist() == expected[n]["input_ids"].tolist()


registry = sys.modules["fsspec.registry"]._registry  # the attribute `fsspec.registry` is the dict without methods


@pytest.mark.parametrize(
    ("protocol", "package"),
    [("s3", "s3fs"), ("s3a", "s3fs"), ("gs", "gcsfs"), ("gcs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "*.parquet"])
def test_a_missing_package_is_named(protocol, package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(registry, protocol, raising=False)
    with pytest.raises(SourceError, match=rf"^{protocol}:// needs .*{package}.*pip install {package}.*$") as error:
        open_source(f"{protocol}://bucket/{name}")
    assert "\n" not in str(error.value)


def test_a_missing_package_for_http_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)
    monkeypatch.delitem(registry, "https", raising=False)
    with pytest.raises(SourceError, match=r"^https:// needs .*aiohttp.*pip install aiohttp"):
        open_source("https://example.org/rows.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nonsense://bucket/rows.jsonl", "an address that fsspec knows .*nonsense"),
        ("memory://data/none.jsonl", "got 'memory://data/none.jsonl', where there is none"),
        ("memory://data/*.csv", "where there is none"),
        ("memory://data", r"the folder 'memory://data'.*'memory://data/\*.jsonl'"),
        ("memory://data/", "the folder"),
        ("memory://data/*", "files of one format"),
        ("memory://other/note.docx", "can be read by themselves"),
        ("memory://prepared", "copy that folder to a local disk"),
        ("memory://data/broken.jsonl", r"broken.jsonl', which is not: line 2 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(source, message, memory):
    memory({"rows.jsonl": LINES, "rows.parquet": arrow_bytes("parquet")})
    memory({"note.docx": b"x"}, "other")
    memory({"broken.jsonl": b'{"text": "a"}\n{oops\n'})
    memory({"meta.json": b"{}", "shard-000000.arrow": b""}, "prepared")
    with pytest.raises((SourceError, ValueError, FileNotFoundError), match=message) as error:
        open_source(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["s3://bucket/out", Path("s3://bucket/out"), "memory://out"])
def test_prepared_rows_are_local(folder, model, processor):
    with pytest.raises(ValueError, match="`output_dir` must be a local folder"):
        prepare(ROWS, folder, model, processor)
    with pytest.raises(ValueError, match="`output_dir` must be a local folder"):
        prepare_mixture({"a": ROWS}, folder, model, processor)
    with pytest.raises(ValueError, match="`folder` must be a local folder.*copy"):
        load_prepared(folder)


def test_secrets_are_not_written(memory, model, processor, tmp_path):
    source = f"{memory({'rows.jsonl': LINES})}/rows.jsonl"
    prepare(source, tmp_path, model, processor, storage_options={"key": "hidden"}, token="hf_hidden")
    assert "hidden" not in (tmp_path / "meta.json").read_text()


ADDRESSES = {
    "https://me:pw@host/a.jsonl?X-Amz-Signature=1&X-Amz-Date=2": "https://host/a.jsonl",
    "https://host/a.jsonl?v=1&sig=3": "https://host/a.jsonl?v=1",
    "https://host/a.jsonl?v=a%20b": "https://host/a.jsonl?v=a%20b",
    "s3://bucket/a-?.jsonl": "s3://bucket/a-?.jsonl",
    "memory:///a.jsonl": "memory:///a.jsonl",
    "hf://datasets/me/data@main/a.jsonl": "hf://datasets/me/data@main/a.jsonl",
    "/home/me/a.jsonl": "/home/me/a.jsonl",
    "me/data": "me/data",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_described_without_secrets(address):
    assert without_secrets(address) == describe(address) == ADDRESSES[address]


def test_parts_of_addresses():
    assert [origin(f"hf://datasets/{name}/x.png") for name in ("a/b", "a/b@main", "a/c")] == [
        "hf://datasets/a/b", "hf://datasets/a/b", "hf://datasets/a/c"
    ]  # fmt: skip
    assert origin("HTTPS://me@Host:80/x?y") == "https://host:80"
    assert folder_of("s3://b/x/*/y*.jsonl") == "s3://b/x"
    assert folder_of("https://h/x/y.jsonl?z=/q") == "https://h/x"
    assert [is_address(name) for name in ("s3://a", "/a", "a/b", "C:\\x", "file:///a", "zip://a::s3://b")] == [
        True, False, False, False, False, True
    ]  # fmt: skip


def test_an_address_is_no_path(tmp_path):
    with pytest.raises(ValueError, match="`source` must be a string if it is an address"):
        open_source(Path("s3://bucket/rows.jsonl"))


def test_a_file_address_is_a_path(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert texts(open_source(f"file://{tmp_path}/rows.jsonl")) == texts(ROWS)


# Images that rows name.


@pytest.fixture
def pictures(make_image, site, memory):
    """Images at three places: `{name: address}`, and in memory://data/images beside the rows."""
    folder, address, _ = site
    (folder / "0.png").write_bytes(png(make_image, 0))
    memory({"0.png": png(make_image, 0)}, "elsewhere")
    memory({"images/0.png": png(make_image, 0)})
    return {"http": f"{address}/0.png", "memory": "memory://elsewhere/0.png"}


def rows_naming(image):
    """Rows of every form that names an image, as bytes of JSON lines."""
    question = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Noise."}]
    return {
        "prompt": json.dumps({"prompt": "noise", "image": image}).encode(),
        "messages": json.dumps({"messages": question, "images": [image]}).encode(),
        "parts": json.dumps({"messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}},
                                         {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]}]}).encode(),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["prompt", "messages", "parts"])
@pytest.mark.parametrize("place", ["http", "memory"])
def test_a_remote_source_names_images_elsewhere_only_if_allowed(
    form, place, pictures, memory, site, model, processor, tmp_path, caplog
):
    source = f"{memory({'rows.jsonl': rows_naming(pictures[place])[form]})}/rows.jsonl"
    host = pictures[place].split("/")[2]
    with pytest.raises(SourceError, match=rf"Row 0 of the source: .*{place}.*image_hosts=\['{host}'\]"):
        prepare(source, tmp_path / "no", model, processor)
    assert not site[2]
    for allowed in (host, "*"):
        assert len(prepare(source, tmp_path / f"yes{len(allowed)}", model, processor, image_hosts=[allowed])) == 1
    assert "images are read from" in caplog.text


@pytest.mark.parametrize("form", ["prompt", "messages", "parts"])
@pytest.mark.parametrize("image", ["images/0.png", "memory://data/images/0.png", "./images/../images/0.png"])
def test_images_where_the_source_is_are_read(form, image, pictures, memory, make_image, model, processor):
    source = f"{memory({'rows.jsonl': rows_naming(image)[form]})}/rows.jsonl"
    prepared = prepare_rows(source, model, processor)
    assert (len(prepared), prepared.meta["skipped"]) == (1, {})


@pytest.mark.parametrize("image", ["../../../etc/x.png", "/etc/hostname.png", "memory://data/none.png"])
def test_images_of_a_remote_source_are_no_files_of_this_machine(image, memory, model, processor):
    lines = rows_naming(image)["prompt"]
    source = f"{memory({'rows.jsonl': lines})}/rows.jsonl"
    with pytest.raises((ValueError, SourceError), match=r"missing_picture|must be where"):
        prepare_rows(source, model, processor)


@pytest.mark.parametrize("place", ["http", "memory"])
def test_a_local_source_names_images_anywhere_and_the_place_is_told(
    place, pictures, model, processor, tmp_path, caplog
):
    (tmp_path / "rows.jsonl").write_bytes(rows_naming(pictures[place])["prompt"])
    assert len(prepare_rows(str(tmp_path / "rows.jsonl"), model, processor)) == 1
    assert caplog.text.count(f"images are read from {pictures[place].rpartition('/')[0]}, because rows name") == 1


def test_the_images_of_a_remote_source_may_be_local(pictures, memory, make_image, model, processor, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(make_image, 0))
    source = f"{memory({'rows.jsonl': rows_naming('images/0.png')['prompt']})}/rows.jsonl"
    done = prepare(source, tmp_path / "out", model, processor, folder=tmp_path)
    assert len(done) == 1


@pytest.mark.parametrize("hosts", ["example.org", ["https://example.org"], [1]])
def test_hosts_are_a_list_of_names(hosts, model, processor):
    with pytest.raises(ValueError, match="`image_hosts` must be a list of hosts"):
        prepare_rows(ROWS, model, processor, image_hosts=hosts)
