"""Settings: three sources in order, and a line for each that is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.config.loading import ConfigError, load_config, unread_variables
from losswire_server.config.settings import MAX_BYTES, MIB, Config

FIELDS = sorted(Config.model_fields)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests do not count."""
    for name in FIELDS:
        monkeypatch.delenv(f"LOSSWIRE_{name.upper()}", raising=False)


def write(folder: Path, text: str) -> str:
    path = folder / "losswire.toml"
    path.write_text(text)
    return str(path)


def refused(*arguments: str) -> list[str]:
    """The lines of the refusal of these arguments."""
    with pytest.raises(ConfigError) as caught:
        load_config(arguments)
    return str(caught.value).splitlines()


# Another value than the default of each setting, as a flag has it and as Python has it.
OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "listen": ("127.0.0.1:1", "127.0.0.1:1"),
    "health_listen": ("0.0.0.0:2", "0.0.0.0:2"),
    "metrics_listen": ("[::1]:3", "[::1]:3"),
    "insecure": ("true", True),
    "tls_certificate": ("/a", Path("/a")),
    "tls_key": ("/b", Path("/b")),
    "tls_client_ca": ("/c", Path("/c")),
    "identity": ("/e", Path("/e")),
    "reflection": ("true", True),
    "device": ("cuda:3", "cuda:3"),
    "backend": ("reference", "reference"),
    "warm_up": ("float32:10", "float32:10"),
    "threads": ("7", 7),
    "processes": ("3", 3),
    "max_evaluation_bytes": ("1048576", MIB),
    "max_inflight_bytes": ("1073741824", 1024 * MIB),
    "max_waiting_calls": ("5", 5),
    "max_wait_s": ("0.25", 0.25),
    "tenant_metrics": ("true", True),
    "max_queue_s": ("2.5", 2.5),
    "max_stall_s": ("0.5", 0.5),
    "max_stored_bytes": ("0", 0),
    "body_timeout_s": ("1.5", 1.5),
    "runs": ("prod,canary/1", ("prod", "canary/1")),
    "max_runs": ("3", 3),
    "idle_timeout_s": ("2.5", 2.5),
    "default_deadline_s": ("3.5", 3.5),
    "watchdog_s": ("0.5", 0.5),
    "max_connection_age_s": ("90.0", 90.0),
    "drain_wait_s": ("0", 0.0),
    "drain_grace_s": ("4.5", 4.5),
    "otlp_endpoint": ("http://collector:4317", "http://collector:4317"),
    "trace_ratio": ("0.25", 0.25),
    "log_format": ("console", "console"),
    "log_level": ("debug", "debug"),
    "ready_file": ("/d", Path("/d")),
}
# What a setting needs beside it.
COMPANIONS = {
    "tls_certificate": {"tls_key": "/b"},
    "tls_key": {"tls_certificate": "/a"},
    "tls_client_ca": {"tls_certificate": "/a", "tls_key": "/b"},
}
EVERY_SETTING = pytest.mark.parametrize("name", OTHER_VALUES)


def flag(name: str, value: str) -> str:
    option = f"--{name.replace('_', '-')}"
    return option if value == "true" else f"{option}={value}"


def companions(name: str) -> list[str]:
    return [flag(other, value) for other, value in COMPANIONS.get(name, {}).items()]


def in_toml(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'


def test_every_setting_is_tested_here() -> None:
    assert sorted(OTHER_VALUES) == [name for name in FIELDS if name != "config"]


@EVERY_SETTING
def test_a_setting_can_be_a_flag_a_variable_or_in_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = OTHER_VALUES[name]
    assert getattr(load_config(()), name) != value
    assert getattr(load_config([flag(name, text), *companions(name)]), name) == value
    path = write(tmp_path, f"{name} = {in_toml(value)}\n")
    assert getattr(load_config([f"--config={path}", *companions(name)]), name) == value
    monkeypatch.setenv(f"LOSSWIRE_{name.upper()}", text)
    assert getattr(load_config(companions(name)), name) == value


def test_flags_go_before_variables_and_these_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSWIRE_CONFIG", write(tmp_path, "threads = 1\nmax_wait_s = 1\nmax_waiting_calls = 1\n"))
    monkeypatch.setenv("LOSSWIRE_THREADS", "2")
    monkeypatch.setenv("LOSSWIRE_MAX_WAIT_S", "2")
    config = load_config(["--threads=3"])
    assert (config.threads, config.max_wait_s, config.max_waiting_calls) == (3, 2.0, 1)


def test_the_file_of_the_flag_takes_the_place_of_that_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSWIRE_CONFIG", write(tmp_path, "threads = 1\n"))
    other = tmp_path / "other.toml"
    other.write_text("threads = 2\n")
    assert load_config(["--config", str(other)]).threads == 2


def test_settings_cannot_be_changed_afterwards() -> None:
    config = load_config(())
    with pytest.raises(Exception, match="frozen"):
        config.threads = 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("listen", "health_listen", "metrics_listen")
            for value in ("", "x", ":1", "h:", "h:65536", "h:-1", "h:1.5", "h:٣", "::1:5", "[::1:5", "a b:1", "h:1:2")
        ),
        ("device", "tpu"),
        ("device", "cuda:"),
        ("device", "cuda:٣"),
        *((name, "") for name in ("tls_certificate", "tls_key", "tls_client_ca", "identity", "ready_file")),
        ("otlp_endpoint", "None"),
        *(
            (f"{name}_s", value)
            for name in ("body_timeout", "idle_timeout", "default_deadline", "drain_wait", "drain_grace")
            for value in ("inf", "1e300", "86400.1")
        ),
        ("backend", "warp"),
        ("threads", "-1"),
        ("threads", "1025"),
        ("threads", "many"),
        ("max_evaluation_bytes", str(MIB - 1)),
        ("max_evaluation_bytes", str(MAX_BYTES + 1)),
        ("max_inflight_bytes", str(16 * MIB - 1)),
        ("max_inflight_bytes", "1e30"),
        ("max_waiting_calls", "-1"),
        ("max_waiting_calls", "3000000000"),
        ("max_wait_s", "-0.1"),
        ("max_wait_s", "61"),
        ("max_wait_s", "nan"),
        ("max_stored_bytes", "-1"),
        ("max_stored_bytes", str(2**70)),
        ("body_timeout_s", "0"),
        ("idle_timeout_s", "-1"),
        ("default_deadline_s", "nan"),
        ("drain_wait_s", "-1"),
        ("drain_grace_s", "soon"),
        ("log_format", "xml"),
        ("log_level", "loud"),
    ],
)
def test_a_value_that_is_refused_is_named_in_one_line_whether_flag_variable_or_in_the_file(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f'{name} = "{value}"\n')
    assert [line.split(":")[0] for line in refused(flag(name, value))] == [name]
    assert [line.split(":")[0] for line in refused("--config", path)] == [name]
    monkeypatch.setenv(f"LOSSWIRE_{name.upper()}", value)
    [line] = refused()
    assert line.startswith(f"{name}: {value!r} is refused: ")


def test_each_setting_that_is_refused_has_its_line() -> None:
    lines = refused("--threads=-1", "--log-level=loud", "--listen=nowhere")
    assert sorted(line.split(":")[0] for line in lines) == ["listen", "log_level", "threads"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--max-wait-s=nan", "Input should be a finite number"),
        ("--otlp-endpoint=collector", "expected an http or https URL of a host, and its port, such as "),
        ("--max-wait-s=soon", "expected a number of seconds"),
        ("--max-inflight-bytes=512MiB", "expected a whole number of bytes"),
        ("--threads=1.5", "expected a whole number"),
        ("--device=tpu", "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_value_of_no_form_is_told_what_is_accepted(argument: str, expected: str) -> None:
    [line] = refused(argument)
    assert f" is refused: {expected}" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--threads=1", "--threads=2"),
        ("--threads", "1", "--reflection", "--threads", "2"),
        ("--threads=1", "--threads", "2"),
        ("--insecure", "--no-insecure"),
        ("--config=a.toml", "--config=b.toml"),
    ],
    ids=" ".join,
)
def test_a_flag_that_is_given_twice_and_not_alike_is_refused(arguments: tuple[str, ...]) -> None:
    [line] = refused(*arguments)
    name = arguments[0].removeprefix("--").partition("=")[0]
    assert re.fullmatch(rf"{name}: --{name}\S* and --(no-)?{name}\S* are both given; expected one", line)


def test_a_flag_that_is_given_twice_alike_and_lists_that_add_up_are_not() -> None:
    assert load_config(["--threads=2", "--threads", "2"]).threads == 2
    assert load_config(["--runs=a", "--runs=b,c"]).runs == ("a", "b", "c")


def test_a_bound_of_runs_beside_their_list_is_refused_as_it_would_bound_nothing() -> None:
    assert refused("--runs=a,b", "--max-runs=1") == [
        "max_runs: given beside runs, each of which has counters of its own; give one of them"
    ]


def test_a_setting_that_the_file_alone_knows_is_refused_by_name(tmp_path: Path) -> None:
    [line] = refused("--config", write(tmp_path, "max_infligth_bytes = 1\n"))
    assert line == (
        "max_infligth_bytes: 1 is refused: there is no such setting (perhaps max_inflight_bytes is meant); "
        "losswire-server --help lists all"
    )
    [line] = refused("--config", write(tmp_path, "[tls]\ncertificate = 1\n"))
    assert line.startswith("tls: ")


@pytest.mark.parametrize(
    "content",
    [
        *(b"threads = ", b"\xff\xfe", b"threads = 1\nthreads = 2\n", b"threads = 1\nTHREADS = 2\n"),
        b'config = "other.toml"',
        b"runs = " + b"[" * 10_000,
    ],
    ids=["half", "no text", "twice", "twice but for case", "another file", "deep"],
)
def test_a_file_that_cannot_be_taken_at_its_word_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "losswire.toml"
    path.write_bytes(content)
    [line] = refused(f"--config={path}")
    assert line.startswith(f"config: {path}")


@pytest.mark.parametrize(
    "line", ["threads = true", "max_wait_s = true", "insecure = 1", "insecure = 0.0", 'ready_file = "a\\u0000"']
)
def test_what_is_of_another_kind_than_the_setting_is_refused_and_not_turned_into_one(line: str, tmp_path: Path) -> None:
    [told] = refused("--config", write(tmp_path, line))
    assert told.startswith(f"{line.partition(' ')[0]}: ")


def test_a_file_may_be_called_none() -> None:
    assert load_config(["--ready-file=None"]).ready_file == Path("None")


def test_a_file_that_a_variable_in_lower_case_names_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("losswire_config", write(tmp_path, "threads = 1\n"))
    [line] = refused()
    assert line.startswith(f"config: {tmp_path / 'losswire.toml'} was not read")


def test_variables_that_are_no_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("LOSSWIRE_")]:
        # Those of the tests, such as LOSSWIRE_CRDS.
        monkeypatch.delenv(name)
    assert unread_variables() == []
    for name in ("LOSSWIRE_THREDS", "LOSSWIRE_SERVICE_HOST", "LOSSWIRE_THREADS", "losswire_threads"):
        monkeypatch.setenv(name, "1")
    assert unread_variables() == ["LOSSWIRE_SERVICE_HOST", "LOSSWIRE_THREDS"]


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_is_not_there_is_refused_and_not_passed_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / name)
    assert refused("--config", path) == [f"config: {path} is not a file that can be read"]
    monkeypatch.setenv("LOSSWIRE_CONFIG", path)
    assert refused() == [f"config: {path} is not a file that can be read"]


@pytest.mark.parametrize(
    "argument", ["--bogus=1", "--thread=1", "stray", "--threads", "--config", "--insecure=maybe", "-t", "--"]
)
def test_a_flag_that_does_not_exist_or_lacks_its_value_is_refused_in_one_line(argument: str) -> None:
    [line] = refused(argument)
    assert argument.partition("=")[0] in line
    assert line.endswith("; losswire-server --help lists the flags")


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "losswire.example:1", "[fe80::1]:1"])
def test_beyond_loopback_without_tls_is_refused_unless_insecure_is_asked_for(listen: str) -> None:
    [line] = refused(f"--listen={listen}")
    assert line.startswith(f"listen: {listen} is reachable from other machines")
    assert load_config([f"--listen={listen}", "--insecure"]).listen == listen
    assert load_config([f"--listen={listen}", "--tls-certificate=/a", "--tls-key=/b"]).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:0"])
def test_loopback_needs_no_tls(listen: str) -> None:
    assert load_config([f"--listen={listen}"]).listen == listen


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tls-certificate=/a"], "tls_key"),
        (["--tls-key=/b"], "tls_certificate"),
        (["--tls-client-ca=/c"], "tls_client_ca"),
    ],
)
def test_half_of_what_tls_needs_is_refused(arguments: list[str], named: str) -> None:
    [line] = refused(*arguments)
    assert named in line


def test_one_evaluation_and_its_next_message_must_fit_the_whole_budget() -> None:
    fits = 64 * MIB + MESSAGE_BYTES
    load_config([f"--max-evaluation-bytes={64 * MIB}", f"--max-inflight-bytes={fits}"])
    [line] = refused(f"--max-evaluation-bytes={64 * MIB}", f"--max-inflight-bytes={fits - 1}")
    assert line.startswith("max_evaluation_bytes: ")
    assert "max_inflight_bytes" in line


def test_help_tells_every_setting_with_its_default_and_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    # argparse breaks lines wherever it likes, in words with hyphens too.
    text = re.sub(r"\s+", "", capsys.readouterr().out)
    for name, field in Config.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description is not None
        assert field.description.endswith(".")
        described = re.sub(r"\s+", "", field.description)
        assert described in text, name
        if field.default not in {None, True, False}:
            assert f"(default:{field.default})" in text.partition(described)[2][:80], name


@pytest.mark.parametrize("names", ["two words", "fine,other"])
def test_a_listed_run_has_a_name_that_requests_may_give(names: str) -> None:
    [line] = refused(f"--runs={names}")
    assert re.match(r"runs\.\d: '(two words|other)' is refused: expected 1 to 128 of the characters", line)
