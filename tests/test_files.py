"""Files are written whole or not at all."""

import hashlib

import pytest

from janus_hf.files import atomic_path, hash_file, write_atomically
from janus_hf.hub.fetching import HUB_ARGUMENTS, find_file, hub_arguments


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", ["caf\u00e9", b"\x00\xff"])
def test_content_and_hash(tmp_path, content):
    path = tmp_path / "file"
    write_atomically(path, content, fsync=True)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected
    assert hash_file(path) == hashlib.sha256(expected).hexdigest()
    assert hash_file(path, "md5") == hashlib.md5(expected).hexdigest()


def test_hub_arguments_are_those_of_every_hub_call():
    assert hub_arguments({"revision": "main", "dtype": "auto", "proxies": None}) == {
        "revision": "main",
        "proxies": None,
    }
    assert set(HUB_ARGUMENTS) >= {"cache_dir", "local_files_only", "token", "subfolder"}


def cache_of(folder, *, absent=()):
    """A cache of the repository me/model that holds config.json, and remembers that the Hub lacks some files."""
    repository, commit = folder / "models--me--model", 40 * "a"
    for path, content in {
        "refs/main": commit,
        f"snapshots/{commit}/config.json": "{}",
        **{f".no_exist/{commit}/{name}": "" for name in absent},
    }.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(content)
    return folder


def test_a_file_of_a_folder_is_found_or_absent(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find_file(tmp_path, "config.json") == str(tmp_path / "config.json")
    assert find_file(tmp_path, "tokenizer.json") is None


def test_a_file_is_absent_only_if_the_hub_has_said_so(tmp_path):
    """Without a connection, a file that may exist is an error: no model may be loaded as if it did not."""
    known, unknown = cache_of(tmp_path / "known", absent=["tokenizer.json"]), cache_of(tmp_path / "unknown")
    offline = {"local_files_only": True}
    assert find_file("me/model", "config.json", cache_dir=unknown, **offline).endswith("config.json")
    assert find_file("me/model", "tokenizer.json", cache_dir=known, **offline) is None
    with pytest.raises(OSError, match="tokenizer.json of 'me/model' cannot be read: local_files_only=True forbids"):
        find_file("me/model", "tokenizer.json", cache_dir=unknown, **offline)
