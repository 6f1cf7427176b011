"""Files are written whole or not at all."""

import hashlib

import pytest

from janus_hf.files import HUB_ARGUMENTS, atomic_path, hash_file, hub_arguments, write_atomically


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
