"""The command line: what it prints, how it fails, and what it never does."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from losswire import array_files
from losswire.commands import app, evaluate

Losswire = Callable[..., Result]

GENERATOR = np.random.default_rng(5)
LOGITS = GENERATOR.normal(size=(40, 5)).astype(np.float32)
TARGET = GENERATOR.integers(0, 5, 40)


@pytest.fixture
def losswire(client: Any, monkeypatch: pytest.MonkeyPatch) -> Losswire:
    """Runs a command against the server."""
    monkeypatch.setenv("LOSSWIRE_SERVER", client.target)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    file = tmp_path / "batch.npz"
    np.savez(file, logits=LOGITS, target=TARGET)
    return file


def succeeded(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def pytorch(**options: Any) -> float:
    return float(F.cross_entropy(torch.tensor(LOGITS).double(), torch.tensor(TARGET), **options))


def test_eval_prints_the_loss_of_an_npz_file(losswire: Losswire, batch: Path) -> None:
    result = losswire("eval", batch)
    assert result.exit_code == 0
    assert f"{pytorch():.6f}" in result.stdout
    assert result.stderr == ""


def test_eval_passes_every_argument_of_the_loss(losswire: Losswire, batch: Path) -> None:
    weight = [1.0, 2.0, 0.5, 3.0, 1.5]
    options = ("--ignore-index", 3, "--reduction", "sum", "--label-smoothing", 0.1, "--checksum")
    report = succeeded(losswire("eval", batch, "--json", "--weight", ",".join(map(str, weight)), *options))
    expected = pytorch(weight=torch.tensor(weight).double(), ignore_index=3, reduction="sum", label_smoothing=0.1)
    assert report["loss"] == pytest.approx(expected, rel=1e-6)
    assert report["ignored"] == (TARGET == 3).sum()
    assert report["counted"] + report["ignored"] == 40


def test_eval_reads_npy_files_without_loading_them(losswire: Losswire, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"logits": LOGITS, "target": TARGET, "weight": np.ones(5, np.float32) * 3}
    files = [tmp_path / f"{name}.npy" for name in arrays]
    for file, array in zip(files, arrays.values(), strict=True):
        np.save(file, array)
    assert isinstance(array_files.read_batch(files).logits, np.memmap)
    assert succeeded(losswire("eval", *files, "--json"))["weight_sum"] == 120
    assert succeeded(losswire("eval", *files[:2], "--json"))["loss"] == pytest.approx(pytorch(), rel=1e-6)


def test_eval_reads_bfloat16_from_safetensors_under_any_name(losswire: Losswire, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    file = tmp_path / "batch.safetensors"
    logits = torch.tensor(LOGITS).bfloat16()
    save_file({"scores": logits, "labels": torch.tensor(TARGET)}, file)
    report = succeeded(losswire("eval", file, "--logits-name", "scores", "--target-name", "labels", "--json"))
    assert report["loss"] == pytest.approx(float(F.cross_entropy(logits.double(), torch.tensor(TARGET))), rel=1e-6)


def test_bfloat16_without_ml_dtypes_says_what_to_install(tmp_path: Path) -> None:
    file = tmp_path / "batch.safetensors"
    save_file({"logits": torch.tensor(LOGITS).bfloat16(), "target": torch.tensor(TARGET)}, file)
    hidden = "import sys; sys.modules['ml_dtypes'] = None; from losswire.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "eval", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert 'pip install "losswire[bfloat16]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_eval_in_parts_gives_the_result_of_the_whole(
    losswire: Losswire, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = succeeded(losswire("eval", batch, "--json", "--outputs", "entropy"))
    monkeypatch.setattr(evaluate, "_PART_BYTES", LOGITS.nbytes // 3)
    parts = succeeded(losswire("eval", batch, "--json", "--outputs", "entropy"))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-15)
    assert parts["outputs"] == whole["outputs"]


def test_wrong_label_in_a_later_part_is_placed(
    losswire: Losswire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGET.copy()
    target[30] = 9
    np.savez(tmp_path / "batch.npz", logits=LOGITS, target=target)
    monkeypatch.setattr(evaluate, "_PART_BYTES", LOGITS.nbytes // 4)
    result = losswire("eval", tmp_path / "batch.npz")
    assert result.exit_code == 1
    assert "in the part that begins at row 30: target[0] is 9" in result.stderr


def test_outputs_are_summarised_and_saved(losswire: Losswire, batch: Path, tmp_path: Path) -> None:
    saved = tmp_path / "outputs.npz"
    options = ("--outputs", "entropy,argmax", "--reduction", "none", "--save", saved)
    report = succeeded(losswire("eval", batch, "--json", *options))
    assert "loss" not in report
    assert report["outputs"]["argmax"]["dtype"] == "int64"
    with np.load(saved) as outputs:
        assert sorted(outputs.files) == ["argmax", "entropy", "loss"]
        np.testing.assert_array_equal(outputs["argmax"], LOGITS.argmax(1))
        assert outputs["loss"].mean() == pytest.approx(pytorch(), rel=1e-6)


def test_numbers_that_are_not_finite_stay_valid_json(losswire: Losswire, batch: Path) -> None:
    np.savez(batch, logits=LOGITS, target=np.full(40, -100))
    assert succeeded(losswire("eval", batch, "--json"))["loss"] == "NaN"
    assert succeeded(losswire("eval", batch, "--json", "--empty-mean", "zero"))["loss"] == 0
    assert losswire("eval", batch, "--empty-mean", "error").exit_code == 1


def test_eval_warns_in_words_of_the_two_common_mistakes(losswire: Losswire, batch: Path) -> None:
    np.savez(batch, logits=torch.tensor(LOGITS).softmax(1).numpy(), target=TARGET)
    result = losswire("eval", batch)
    assert result.exit_code == 0
    assert "they look like probabilities" in result.stderr
    np.savez(batch, logits=LOGITS, target=TARGET + 1)
    result = losswire("eval", batch)
    assert result.exit_code == 1
    assert "warning: labels run from 1 to 5" in result.stderr
    assert "Traceback" not in result.output


class Exploding:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickled_content_is_refused_unread(losswire: Losswire, tmp_path: Path, suffix: str) -> None:
    array = np.array([Exploding(tmp_path / "trace")], dtype=object)
    file = tmp_path / f"batch{suffix}"
    if suffix == ".npz":
        np.savez(file, logits=array, target=array)
    else:
        np.save(file, array)
    result = losswire("eval", *([file] if suffix == ".npz" else [file, file]))
    assert result.exit_code == 1
    assert "which losswire never does" in result.stderr
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npz", None, "absent.npz does not exist"),
        ("text.npz", b"hello", "text.npz"),
        ("cut.npz", b"PK\x03\x04", "cut.npz cannot be read"),
        ("text.npy", b"hello", "expected one .npz or .safetensors file, or LOGITS.npy TARGET.npy [WEIGHT.npy]"),
        ("text.safetensors", b"hello, world", "text.safetensors cannot be read"),
        ("batch.pkl", b"hello", "batch.pkl has the suffix '.pkl'; expected .npz, .npy or .safetensors"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    losswire: Losswire, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = losswire("eval", tmp_path / name)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_text_in_place_of_numbers_is_one_line(losswire: Losswire, batch: Path) -> None:
    np.savez(batch, logits=LOGITS, target=np.array(["1"] * 40))
    result = losswire("eval", batch)
    assert result.exit_code == 1
    assert result.stderr == "losswire: target has elements of type <U1; expected an array of numbers\n"


def test_missing_array_is_named_with_those_that_are_there(losswire: Losswire, batch: Path) -> None:
    assert "has no array 'labels'; it has logits, target" in losswire("eval", batch, "--target-name", "labels").stderr
    assert "has no array 'w'" in losswire("eval", batch, "--weight-name", "w").stderr


def test_server_that_is_not_there_is_one_line_with_what_to_do(losswire: Losswire, batch: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # Bound, but nobody listens.
        result = losswire("eval", batch, "--server", address, "--timeout-s", 1)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "start one with `losswire-server`" in result.stderr
    assert result.stderr.count("\n") == 1


def test_token_is_not_sent_where_it_could_be_read(
    losswire: Losswire, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSWIRE_TOKEN", "secret")
    result = losswire("eval", batch, "--server", "192.0.2.1:50051")
    assert result.exit_code == 1
    assert "token would travel readable" in result.stderr


def test_a_token_may_be_in_a_file(losswire: Losswire, batch: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    result = losswire("--token-file", file, "eval", batch, "--server", "192.0.2.1:50051")
    assert result.exit_code == 1
    assert "token would travel readable" in result.stderr
    result = losswire("--token-file", tmp_path / "nowhere", "eval", batch, "--server", "localhost:1")
    assert result.exit_code == 1
    assert f"token cannot be read from {tmp_path / 'nowhere'}" in result.stderr


def test_a_new_token_goes_to_a_file_and_its_hash_to_the_terminal(losswire: Losswire, tmp_path: Path) -> None:
    file = tmp_path / "token"
    result = succeeded_text(losswire("token", 'ci "a"', "--out", file))
    token = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(result) == {
        "tokens": [{"name": 'ci "a"', "sha256": hashlib.sha256(token.encode()).hexdigest()}]
    }
    assert token not in result
    assert len(token) >= 43
    again = losswire("token", "ci", "--out", file)
    assert again.exit_code == 2
    assert "expected a path where there is no file yet" in " ".join(again.stderr.replace("│", " ").split())
    assert file.read_text().strip() == token
    assert losswire("token", "a\nb", "--out", tmp_path / "other").exit_code == 2


def succeeded_text(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "arguments", [("eval",), ("eval", "x.npz", "--reduction", "avg"), ("explain", "--logits", "[[1"), ("nonsense",)]
)
def test_wrong_usage_exits_2(losswire: Losswire, arguments: tuple[str, ...]) -> None:
    result = losswire(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


def test_interrupt_exits_130_and_says_nothing(batch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "losswire", "eval", str(batch), "--server", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:  # It is connected, so it is within the call, and will wait there.
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (stdout, stderr) == ("", "")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_packages_the_command_says_what_to_install(package: str) -> None:
    hidden = f"import sys; sys.modules[{package!r}] = None; from losswire.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == 'losswire: the commands need more packages: pip install "losswire[cli]"\n'


def test_commands_do_not_load_pytorch() -> None:
    check = "import sys; import losswire.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


def test_version_is_that_of_the_package(losswire: Losswire) -> None:
    import losswire as package

    assert losswire("--version").stdout == f"losswire {package.__version__}\n"


def test_info_describes_the_server(losswire: Losswire) -> None:
    report = succeeded(losswire("info", "--json"))
    assert "entropy" in report["outputs"]
    assert report["limits"]["message_bytes"] > 0
    assert report["torch_version"] in losswire("info").stdout


def test_ping_measures_as_many_calls_as_asked(losswire: Losswire) -> None:
    report = succeeded(losswire("ping", "-n", 3, "--json"))
    latency_s = report["latency_s"]
    assert report["count"] == 3
    assert 0 < latency_s["minimum"] <= latency_s["median"] <= latency_s["p99"] <= latency_s["maximum"]
    assert "3 round trips" in losswire("ping", "--count", 3).stdout


def test_explain_shows_the_worked_example_by_default(losswire: Losswire) -> None:
    result = losswire("explain")
    assert result.exit_code == 0
    for number in ("0.3817", "-0.9632", "1.0646", "3.1939 / 3"):
        assert number in result.stdout


def test_explain_shows_weights_smoothing_and_ignored_rows(losswire: Losswire) -> None:
    tensors = ("--logits", "[[2, 0.5], [.5, 1], [0, 3]]", "--target", "[0, -100, 1]", "--weight", "[1, 3]")
    result = losswire("explain", *tensors, "--label-smoothing", 0.1)
    assert "loss = 0.9·(-w[t]·lp[t]) + 0.05·(-Σ w·lp)" in result.stdout
    assert "-100 (ignored)" in result.stdout
    assert "/ 4 (summed weight of the targets that count)" in result.stdout
    report = succeeded(losswire("explain", *tensors, "--label-smoothing", 0.1, "--json"))
    assert report["weight_sum"] == 4
    assert report["ignored"] == [False, True, False]


def test_explain_divides_by_rows_for_class_probabilities(losswire: Losswire) -> None:
    result = losswire("explain", "--logits", "[[2, 0.5]]", "--target", "[[.25, .75]]", "--weight", "[1, 3]")
    assert "/ 1 (number of rows)" in result.stdout


def test_explain_shows_the_first_rows_of_a_file_and_says_so(losswire: Losswire, batch: Path) -> None:
    result = losswire("explain", batch)
    assert result.exit_code == 0
    assert "showing 20 of 40 rows and 5 of 5 classes" in result.stderr
    assert f"= {pytorch():.4f}" in result.stdout


def test_explain_needs_both_tensors(losswire: Losswire) -> None:
    result = losswire("explain", "--logits", "[[1, 2]]")
    assert result.exit_code == 2
    assert "both --logits and --target" in result.stderr
