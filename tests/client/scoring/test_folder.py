"""Files that are whole or absent, in a folder that nothing leads out of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from losswire.scoring.folder import Folder


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    with Folder(tmp_path / "out") as folder:
        with folder.writing("a") as file:
            file.write(b"first")
            assert folder.names() == {".tmp-a"}
        assert folder.names() == {"a"}
        assert folder.read("a") == b"first"


def test_a_file_that_fails_leaves_nothing_and_spares_what_was_there(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        folder.write("a", b"before")
        with pytest.raises(TypeError), folder.writing("a") as file:
            file.write(None)  # type: ignore[call-overload]
        assert folder.names() == {"a"}
        assert folder.read("a") == b"before"


def test_a_new_file_spares_what_was_there(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        folder.write_new("a", b"first")
        folder.write_new("a", b"second")
        assert (folder.names(), folder.read("a")) == ({"a"}, b"first")


@pytest.mark.parametrize("planted", ["a", ".tmp-a"])
def test_a_planted_link_leads_no_write_elsewhere(tmp_path: Path, planted: str) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / planted).symlink_to(victim)
    with Folder(out) as folder:
        folder.write("a", b"mine")
        assert folder.read("a") == b"mine"
    assert victim.read_text() == "precious"
    assert not (out / "a").is_symlink()


def test_a_planted_link_is_neither_read_nor_appended_to(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / "log").symlink_to(victim)
    with Folder(out) as folder:
        with pytest.raises(OSError, match="symbolic links"):
            folder.read("log")
        with pytest.raises(OSError, match="symbolic links"):
            folder.append_line("log", "mine")
    assert victim.read_text() == "precious"


def test_a_planted_link_is_no_folder_of_ours(tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "rows").symlink_to(elsewhere)
    with Folder(out) as folder, pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        Folder(out / "rows", folder)


def test_content_and_names_are_on_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, rename = os.fsync, os.rename
    kinds = {True: "flush folder", False: "flush file"}

    def flushed(descriptor: int) -> None:
        done.append(kinds[Path(f"/proc/self/fd/{descriptor}").is_dir()])
        flush(descriptor)

    def renamed(*names: str, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append("rename")
        rename(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    with Folder(tmp_path) as folder:
        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(os, "rename", renamed)
        folder.write("a", b"content")
    assert done == ["flush file", "rename", "flush folder"]
