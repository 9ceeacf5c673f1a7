"""What a run writes down before anything else, and which runs it then refuses to be continued as."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow
import pytest

import losswire
from losswire.info import Limits, ServerInfo
from losswire.scoring.errors import RefusedError, ScoringError
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import (
    MANIFEST_NAME,
    Input,
    Manifest,
    ScoreOptions,
    Share,
    comparable,
    differing,
    keep,
    server_identity,
)
from losswire.scoring.row_file import ROWS_FOLDER, row_file_name

INPUTS = (Input("a.npz", 10, "1"), Input("b.npz", 20, "2"))
SERVER = {"version": "1", "device": "cpu", "kernel": "avx2 00"}
VERSIONS = {"losswire": "1", "pyarrow": "2"}
MANIFEST = Manifest(INPUTS, ScoreOptions(), SERVER, VERSIONS)
WRITTEN = """\
{
 "format": "losswire-score-1",
 "versions": {
  "losswire": "1",
  "pyarrow": "2"
 },
 "server": {
  "version": "1",
  "device": "cpu",
  "kernel": "avx2 00"
 },
 "options": {
  "logits": "logits",
  "target": "target",
  "group_by": null,
  "weight": [
   "0.1",
   "nan"
  ],
  "ignore_index": -100,
  "label_smoothing": 0.0,
  "outputs": [
   "entropy"
  ],
  "top_k": 5,
  "check_probabilities": false
 },
 "skip": true,
 "inputs": [
  {
   "name": "a.npz",
   "bytes": 10,
   "modified": "1"
  }
 ]
}
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(("text", "share"), [("0/1", Share()), ("0/4", Share(0, 4)), ("3/4", Share(3, 4))])
def test_a_share_is_written_as_it_is_read(text: str, share: Share) -> None:
    assert Share.parse(text) == share
    assert str(share) == text


@pytest.mark.parametrize("text", ["", "1", "0/", "/4", "4/4", "-1/4", "0/0", "a/4", "1/b", "1/2/3", "1 4", "0.5/4"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ScoringError) as caught:
        Share.parse(text)
    assert str(caught.value) == f"--shard is {text!r}; expected I/N with 0 <= I < N, such as 0/4"


def test_shares_have_every_shard_once_and_files_of_their_own() -> None:
    shares = [Share(index, 3) for index in range(3)]
    assert [[number in share for share in shares].index(True) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [share.suffix for share in (Share(), *shares)] == ["", "-0-of-3", "-1-of-3", "-2-of-3"]


def test_a_manifest_is_written_in_these_very_words_and_read_again() -> None:
    options = ScoreOptions(weight=(0.1, math.nan), outputs=("entropy",))
    manifest = Manifest(INPUTS[:1], options, SERVER, VERSIONS, skip=True)
    assert manifest.to_bytes().decode() == WRITTEN
    read = Manifest.from_bytes(WRITTEN.encode())
    assert differing(manifest, read) is None
    assert read.to_bytes() == manifest.to_bytes()
    assert read.options.weight is not None
    assert read.options.outputs == ("entropy",)
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


def test_what_writes_the_files_of_a_run_is_a_part_of_its_manifest() -> None:
    versions = Manifest(INPUTS, ScoreOptions(), SERVER).versions
    assert versions == {"losswire": losswire.__version__, "pyarrow": pyarrow.__version__}


def test_a_manifest_of_another_format_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        Manifest.from_bytes(WRITTEN.replace("score-1", "score-2").encode())
    assert str(caught.value) == "manifest.json has the format 'losswire-score-2'; expected 'losswire-score-1'"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (WRITTEN.replace('"skip"', '"leap"'), "'skip'"),
        (WRITTEN.replace('"nan"', '"much"'), "could not convert string to float: 'much'"),
        (WRITTEN.replace('"bytes"', '"weight"'), "Input.__init__() got an unexpected keyword argument 'weight'"),
        ("{}", "'format'"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "list indices must be integers or slices, not str"),
    ],
)
def test_what_is_no_manifest_is_refused(content: str, told: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Manifest.from_bytes(content.encode())
    assert str(caught.value) == f"manifest.json is no manifest of a scoring run: {told}"


def test_the_digest_is_of_all_but_the_state_of_the_inputs() -> None:
    # What results of this version hold, whatever the order in which a server tells what it is.
    assert MANIFEST.digest == "e89ac56161c85465292510cc320887de893644d1c3544300e8b62a288506e67b"
    reordered = replace(MANIFEST, server=dict(reversed(SERVER.items())), versions=dict(reversed(VERSIONS.items())))
    touched = replace(MANIFEST, inputs=tuple(Input(each.name, 99, "later") for each in INPUTS))
    assert {MANIFEST.digest, reordered.digest, touched.digest} == {MANIFEST.digest}
    others = [
        replace(MANIFEST, inputs=INPUTS[:1]),
        replace(MANIFEST, options=ScoreOptions(top_k=6)),
        replace(MANIFEST, server=SERVER | {"version": "2"}),
        replace(MANIFEST, versions=VERSIONS | {"pyarrow": "3"}),
        replace(MANIFEST, skip=True),
    ]
    assert len({each.digest for each in (MANIFEST, *others)}) == 1 + len(others)


def info_of(**changes: Any) -> ServerInfo:
    """A server that tells all about itself."""
    told = {"version": "1", "torch_version": "2", "device": "cuda:0", "device_name": "H", "device_memory_bytes": 0}
    told |= {"backend": "gpu", "threads": 1, "processes": 1, "floating_dtypes": (), "index_dtypes": (), "outputs": ()}
    limits = Limits(**dict.fromkeys(Limits.__dataclass_fields__, 0))
    return ServerInfo(**{**told, "limits": limits, "kernel": "avx2 00", "identity": "0f3c-9b1d", **changes})


def test_a_server_is_known_by_what_decides_its_bits() -> None:
    program = {"version": "1", "torch_version": "2", "backend": "gpu"}
    exact = program | {"device": "cuda:0 H", "kernel": "avx2 00", "identity": "0f3c-9b1d"}
    assert server_identity(info_of(), any_device=False) == exact
    assert server_identity(info_of(device_name=""), any_device=False) == exact | {"device": "cuda:0"}
    any_device = program | {"device": "any", "kernel": "any", "identity": "0f3c"}
    assert server_identity(info_of(), any_device=True) == any_device
    assert [replace(MANIFEST, server=each).any_device for each in (exact, any_device)] == [False, True]


@pytest.mark.parametrize(
    ("identity", "any_device", "told"),
    [
        ("0f3c-9b1d", True, "0f3c"),
        ("0f3c-9b1d", False, "0f3c-9b1d"),
        ("0f3c", True, "0f3c"),
        (None, True, ""),
        (None, False, ""),
    ],
)
def test_of_servers_on_any_device_the_program_alone_is_compared(
    identity: str | None, any_device: bool, told: str
) -> None:
    assert comparable(identity, any_device) == told


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (replace(MANIFEST, options=ScoreOptions(top_k=6)), "option top_k was 5 and is 6"),
        (replace(MANIFEST, options=ScoreOptions(weight=(1.0, 2.0))), "option weight was None and is (1.0, 2.0)"),
        (replace(MANIFEST, skip=True), "option on_error was 'stop' and is 'skip'"),
        (replace(MANIFEST, versions=VERSIONS | {"pyarrow": "3"}), "version of pyarrow was '2' and is '3'"),
        (replace(MANIFEST, versions={"losswire": "1"}), "version of pyarrow was '2' and is None"),
        (replace(MANIFEST, server=SERVER | {"device": "any"}), "server's device was 'cpu' and is 'any'"),
        (replace(MANIFEST, server=SERVER | {"name": "x"}), "server's name was None and is 'x'"),
        (replace(MANIFEST, inputs=INPUTS[1:]), "the shard a.npz is not among the sources any more"),
        (replace(MANIFEST, inputs=()), "the shard a.npz is not among the sources any more"),
        (
            replace(MANIFEST, inputs=(*INPUTS, Input("d.npz", 0, ""), Input("c.npz", 0, ""))),
            "the shard c.npz was not among the sources",
        ),
        (replace(MANIFEST, inputs=(Input("a.npz", 9, "9"), INPUTS[1])), None),
    ],
)
def test_the_first_difference_is_told(asked: Manifest, told: str | None) -> None:
    assert differing(MANIFEST, asked) == told


def test_nan_is_no_difference_and_many_class_weights_are_told_in_short() -> None:
    nan = replace(MANIFEST, options=ScoreOptions(weight=(math.nan,)))
    assert differing(nan, Manifest.from_bytes(nan.to_bytes())) is None
    told = differing(MANIFEST, replace(MANIFEST, options=ScoreOptions(weight=(0.123456,) * 10000)))
    assert told is not None
    assert told.startswith("option weight was None and is (0.123456, 0.123456,")
    assert told.endswith(" [...]")
    assert 140 <= len(told) <= len("option weight was None and is ") + 120


@pytest.mark.parametrize("share", [Share(), Share(1, 2)])
def test_the_first_runner_writes_the_manifest_and_later_ones_get_it(out: Path, share: Share) -> None:
    touched = replace(MANIFEST, inputs=(Input("a.npz", 9, "9"), INPUTS[1]))
    with Folder(out) as folder:
        # What runners that lock, or wrote no manifest yet, may have left.
        for name in (".lock", ".lock-1-of-2", ".tmp-manifest.json-0-of-2"):
            folder.write(name, b"")
        (out / ROWS_FOLDER).mkdir()
        assert keep(folder, MANIFEST, share) == MANIFEST
        written = folder.read(MANIFEST_NAME)
        assert written == MANIFEST.to_bytes()
        assert keep(folder, touched, Share()) == MANIFEST
        assert folder.read(MANIFEST_NAME) == written


def test_a_folder_of_something_else_is_refused(out: Path) -> None:
    with Folder(out) as folder:
        for name in ("z.txt", "b.txt", ".lock"):
            folder.write(name, b"")
        with pytest.raises(RefusedError) as caught:
            keep(folder, MANIFEST, Share())
        assert folder.names() == {"z.txt", "b.txt", ".lock"}
    told = f"{out} holds 'b.txt' and no manifest.json; give a new or empty folder as --out"
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("share", "result", "replaced"),
    [(Share(), None, True), (Share(0, 2), None, False), (Share(), row_file_name(0, "a.npz"), False)],
    ids=["nothing scored", "a share", "a result"],
)
def test_another_manifest_replaces_one_by_which_nothing_was_scored(
    out: Path, share: Share, result: str | None, replaced: bool
) -> None:
    asked = replace(MANIFEST, options=ScoreOptions(top_k=6))
    with Folder(out) as folder:
        keep(folder, MANIFEST, Share())
        (out / ROWS_FOLDER).mkdir()
        # What is no result.
        (out / ROWS_FOLDER / ".tmp-000000-a.npz.parquet").touch()
        if result is not None:
            (out / ROWS_FOLDER / result).touch()
        if replaced:
            assert keep(folder, asked, share) == asked
        else:
            with pytest.raises(RefusedError) as caught:
                keep(folder, asked, share)
            assert str(caught.value) == (
                f"{out} holds another run: option top_k was 5 and is 6; "
                "give the same as before, or another --out for this one"
            )
        assert json.loads(folder.read(MANIFEST_NAME))["options"]["top_k"] == (6 if replaced else 5)


class Interrupted(Folder):
    """A folder in which another runner begins while the first one writes."""

    def __init__(self, path: Path, others: list[Share]) -> None:
        super().__init__(path)
        self._others = others

    @contextlib.contextmanager
    def writing(self, name: str, unique: str = "", *, replace: bool = True) -> Iterator[IO[bytes]]:
        with super().writing(name, unique, replace=replace) as file:
            if self._others:
                assert keep(self, otherwise(MANIFEST), self._others.pop()) == otherwise(MANIFEST)
            yield file


def otherwise(manifest: Manifest) -> Manifest:
    return replace(manifest, skip=not manifest.skip)


def test_of_runners_that_begin_at_once_one_writes_the_manifest_and_the_others_go_by_it(out: Path) -> None:
    with Interrupted(out, [Share(1, 2)]) as folder:
        with pytest.raises(RefusedError, match="option on_error was 'skip' and is 'stop'"):
            keep(folder, MANIFEST, Share(0, 2))
        assert folder.names() == {MANIFEST_NAME}
        assert Manifest.from_bytes(folder.read(MANIFEST_NAME)).skip


def test_a_planted_link_in_place_of_the_rows_is_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with Folder(out) as folder:
        keep(folder, MANIFEST, Share())
        (out / ROWS_FOLDER).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            keep(folder, otherwise(MANIFEST), Share())
