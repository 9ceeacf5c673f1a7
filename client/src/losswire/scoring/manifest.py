"""What a run scores, how, and with which code: written once, before anything else, and compared ever after."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Final

from losswire.info import ServerInfo
from losswire.scoring.errors import RefusedError, ScoringError, require
from losswire.scoring.folder import TEMPORARY, Folder
from losswire.scoring.row_file import ROWS_FOLDER, shard_number

MANIFEST_NAME: Final = "manifest.json"
_FORMAT: Final = "losswire-score-1"
_ANY: Final = "any"


@dataclass(frozen=True, slots=True)
class Share:
    """One of several equal shares of the shards: those whose number leaves the remainder `index`.

    >>> [number for number in range(7) if number in Share(1, 3)]
    [1, 4]
    """

    index: int = 0
    count: int = 1

    def __contains__(self, number: int) -> bool:
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What keeps this runner's own files apart from those of the others; empty for a runner of everything."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that is written I/N.

        Raises:
            ScoringError: if it is none.
        """
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise ScoringError(f"--shard is {text!r}; expected I/N with 0 <= I < N, such as 0/4")


@dataclass(frozen=True, slots=True)
class Input:
    """One shard as it was when the run was planned.

    Attributes:
        name: Path or URL.
        bytes: Its size.
        modified: When it was last changed, or which version it is, in the words of its file system.
    """

    name: str
    bytes: int
    modified: str


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is asked of every row.

    Attributes:
        logits: Name of the logits' array or column.
        target: Name of the targets' array or column.
        group_by: Name of the groups' array or column, or None.
        weight: Factor of each class, or None.
        ignore_index: Class index that does not count.
        label_smoothing: Share of the target spread over all classes.
        outputs: Further per-row outputs, such as "entropy".
        top_k: k of the output "topk".
        check_probabilities: Whether class probabilities that do not sum to 1 are refused.
    """

    logits: str = "logits"
    target: str = "target"
    group_by: str | None = None
    weight: tuple[float, ...] | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    outputs: tuple[str, ...] = ()
    top_k: int = 5
    check_probabilities: bool = False


def _default_versions() -> dict[str, str]:
    # The writer of Parquet names itself in the file.
    require("pyarrow")
    return {name: version(name) for name in ("losswire", "pyarrow")}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is scored, how, and with which code.

    Attributes:
        inputs: The shards, sorted by name.
        options: What is asked of every row.
        server: What decides the bits of a result on the other side, as `server_identity` tells it.
        versions: What decides the bytes of a file on this side.
        skip: Whether rows without a finite loss are left out of the sums; else they stop the run.
    """

    inputs: tuple[Input, ...]
    options: ScoreOptions
    server: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=_default_versions)
    skip: bool = False

    @property
    def any_device(self) -> bool:
        """Whether servers on different devices may take part."""
        return self.server["device"] == _ANY

    @property
    def digest(self) -> str:
        """SHA-256 of all but the state of the inputs, which the results themselves hold a digest of."""
        content = self._to_json() | {"inputs": [item.name for item in self.inputs]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The manifest as a file."""
        return json.dumps(self._to_json(), indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """The manifest that `to_bytes` wrote.

        Raises:
            RefusedError: if it is none.
        """
        try:
            value = json.loads(content)
            if value["format"] != _FORMAT:
                raise RefusedError(f"{MANIFEST_NAME} has the format {value['format']!r}; expected {_FORMAT!r}")
            options = dict(value["options"])
            weight = options["weight"]
            options["weight"] = None if weight is None else tuple(map(float, weight))
            options["outputs"] = tuple(options["outputs"])
            inputs = tuple(Input(**item) for item in value["inputs"])
            return cls(inputs, ScoreOptions(**options), value["server"], value["versions"], value["skip"])
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{MANIFEST_NAME} is no manifest of a scoring run: {error}") from error

    def _to_json(self) -> dict[str, Any]:
        options = asdict(self.options)
        if self.options.weight is not None:
            # As text, because JSON has no NaN.
            options["weight"] = [repr(factor) for factor in self.options.weight]
        return {
            "format": _FORMAT,
            "versions": dict(self.versions),
            "server": dict(self.server),
            "options": options,
            "skip": self.skip,
            "inputs": [asdict(item) for item in self.inputs],
        }


def server_identity(info: ServerInfo, any_device: bool) -> dict[str, str]:
    """What about a server decides the bits of its results.

    Args:
        info: What the server says about itself.
        any_device: Whether servers on other devices may take part, whose results may differ in the last bits.
    """
    program = {"version": info.version, "torch_version": info.torch_version, "backend": info.backend}
    device = f"{info.device} {info.device_name}".strip()
    runs_on = dict.fromkeys(("device", "kernel"), _ANY) if any_device else {"device": device, "kernel": info.kernel}
    return program | runs_on | {"identity": comparable(info.identity, any_device)}


def comparable(identity: str | None, any_device: bool) -> str:
    """What of the identity that a server tells is the same for all that may take part; empty if it tells none.

    >>> comparable("0f3c-9b1d", any_device=True)
    '0f3c'
    """
    return (identity or "").partition("-")[0] if any_device else identity or ""


def keep(folder: Folder, manifest: Manifest, share: Share) -> Manifest:
    """Writes the manifest down, or compares it with the one that is there, which it returns.

    One by which nothing was scored or skipped yet is replaced by that of a runner of everything.

    Args:
        folder: Where the results go.
        manifest: What is to be scored now.
        share: Whose shards this runner scores.

    Raises:
        RefusedError: if the folder holds something else; with what differs. Sizes and times of shards are not compared.
    """
    try:
        kept = Manifest.from_bytes(folder.read(MANIFEST_NAME))
    except FileNotFoundError:
        strangers = {name for name in folder.names() if not name.startswith((".lock", TEMPORARY))} - {ROWS_FOLDER}
        if strangers:
            raise RefusedError(
                f"{folder.path} holds {min(strangers)!r} and no {MANIFEST_NAME}; give a new or empty folder as --out"
            ) from None
        folder.write_new(MANIFEST_NAME, manifest.to_bytes(), share.suffix)
        # That of a runner that was faster, perhaps.
        kept = Manifest.from_bytes(folder.read(MANIFEST_NAME))
    if difference := differing(kept, manifest):
        # A wrong option shall not bind a folder for ever. Runners of shares may be at work by what is written there.
        if share.count == 1 and not _has_results(folder):
            folder.write(MANIFEST_NAME, manifest.to_bytes())
            return manifest
        raise RefusedError(
            f"{folder.path} holds another run: {difference}; give the same as before, or another --out for this one"
        )
    return kept


def _has_results(folder: Folder) -> bool:
    with Folder(folder.path / ROWS_FOLDER, folder) as rows:
        return any(shard_number(name) is not None for name in rows.names())


def differing(kept: Manifest, asked: Manifest) -> str | None:
    """The first thing in which two manifests differ, in words; None if nothing decides otherwise."""
    for title, before, now in (
        ("option", asdict(kept.options) | {"on_error": kept.skip}, asdict(asked.options) | {"on_error": asked.skip}),
        ("version of", dict(kept.versions), dict(asked.versions)),
        ("server's", dict(kept.server), dict(asked.server)),
    ):
        for name in before | now:
            if repr(before.get(name)) != repr(now.get(name)):
                return f"{title} {name} was {_shown(name, before.get(name))} and is {_shown(name, now.get(name))}"
    known, given = ({item.name for item in manifest.inputs} for manifest in (kept, asked))
    if gone := known - given:
        return f"the shard {min(gone)} is not among the sources any more"
    if new := given - known:
        return f"the shard {min(new)} was not among the sources"
    return None


def _shown(name: str, value: Any) -> str:
    if name == "on_error":
        return "'skip'" if value else "'stop'"
    # Class weights may be many.
    return textwrap.shorten(repr(value), 120)
