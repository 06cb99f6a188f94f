"""The log: one line of JSON for each event, whatever is in it, and whatever the disk does."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.runtime.serving import logs

#: what breaks lines, terminals or JSON: controls of both kinds, separators, directions, halves of surrogate pairs
HOSTILE = 'a\nb\r\x00\x1b[31m\x7f\x85\u2028\u2029\u202e "quoted" \\ end'
RESERVED = ("time", "level", "event", "request_id")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file that everything is logged to, until the test ends."""
    file = tmp_path / "server.log"
    logs.configure(str(file))
    yield file
    logs.reset()


def lines(file: Path) -> list[dict[str, Any]]:
    """Its lines; each is printable ASCII, and JSON."""
    content = file.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    assert not re.search(rb"[^\x20-\x7e\n]", content)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in content.splitlines()]


def test_an_event_is_a_line(log: Path) -> None:
    logs.event("picture_made", seconds=1.5, n=2, size=[64, 64], cached=False, reason=None)
    (line,) = lines(log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    expected = {"level": "info", "event": "picture_made", "request_id": None}
    assert line == expected | {"seconds": 1.5, "n": 2, "size": [64, 64], "cached": False, "reason": None}


def test_levels(log: Path) -> None:
    logs.event("hidden", level=logging.DEBUG)
    logs.event("seen", level=logging.ERROR)
    assert [(line["event"], line["level"]) for line in lines(log)] == [("seen", "error")]


def test_hostile_values_stay_in_their_line(log: Path) -> None:
    logs.event("request", path=HOSTILE, nested={HOSTILE: [HOSTILE]})
    logging.getLogger("uvicorn.error").warning("bad: %s", HOSTILE)
    first, second = lines(log)
    assert first["path"] == HOSTILE
    assert first["nested"] == {HOSTILE: [HOSTILE]}
    assert second["message"] == f"bad: {HOSTILE}"
    assert len(log.read_bytes().splitlines()) == len(log.read_text().splitlines()) == 2


def test_half_of_a_surrogate_pair_is_escaped_too(log: Path) -> None:
    root = logging.getLogger()
    others = [handler for handler in root.handlers if type(handler).__module__.startswith("_pytest")]
    for handler in others:  # whose reports cannot hold it
        root.removeHandler(handler)
    try:
        logs.event("request", path="\ud800")
    finally:
        for handler in others:
            root.addHandler(handler)
    assert lines(log)[0]["path"] == "\ud800"
    assert log.read_bytes().isascii()


def test_numbers_that_json_lacks_and_values_that_are_images(log: Path) -> None:
    logs.event("odd", nan=float("nan"), infinite=float("-inf"), image=b"\x89PNG", kind=object(), path=Path("/a"))
    (line,) = lines(log)
    assert (line["nan"], line["infinite"], line["image"], line["kind"]) == ("nan", "-inf", "<bytes>", "<object>")
    assert line["path"] == "/a"


def test_a_value_that_is_too_long_is_cut(log: Path) -> None:
    logs.event("request", agent="x" * 1_000_000)
    assert len(log.read_bytes()) < 10_000
    assert "1000000 characters" in lines(log)[0]["agent"]


def test_fields_do_not_replace_what_every_line_has(log: Path) -> None:
    logs.event("request", time="never", event="another")
    (line,) = lines(log)
    assert line["event"] == "request"
    assert (line["time_"], line["event_"]) == ("never", "another")


def test_the_request_s_id_is_in_its_lines(log: Path) -> None:
    async def request(name: str) -> None:
        logs.request_id.set(name)
        await asyncio.sleep(0)
        logs.event("step")
        logging.getLogger("safelight.runtime.serving.dispatch").warning("of a module")

    async def both() -> None:
        await asyncio.gather(request("one"), request("two"))

    asyncio.run(both())
    logs.event("after", request_id="told")
    logs.event("outside")
    found = [(line["event"], line["request_id"]) for line in lines(log)]
    assert sorted(found[:4]) == [("log", "one"), ("log", "two"), ("step", "one"), ("step", "two")]
    assert found[4:] == [("after", "told"), ("outside", None)]


def test_what_other_modules_say(log: Path) -> None:
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("safelight.runtime.networks.engine").warning("%s is used", "onnx")
    logging.getLogger("another").info("hidden")
    logging.getLogger("another").warning("seen")
    found = [(line["logger"], line["level"], line["message"]) for line in lines(log)]
    assert found == [
        ("uvicorn.error", "info", "Started server process [7]"),
        ("safelight.runtime.networks.engine", "warning", "onnx is used"),
        ("another", "warning", "seen"),
    ]


def test_uvicorn_s_access_lines_and_the_form_parser_s_bytes_are_left_out(log: Path) -> None:
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/secret", "1.1", 200)
    logging.getLogger("python_multipart.multipart").warning("Skipping data %r", b"secret")
    assert lines(log) == []


@pytest.mark.parametrize("name", ["conditioning", "long_prompts", "pipelines.base"])
def test_prompts_that_the_pipeline_s_modules_quote_are_left_out(log: Path, name: str) -> None:
    logger = logging.getLogger(f"safelight.runtime.{name}")
    logger.warning("the text encoder takes %d tokens; this part was cut off: %r", 77, "a secret")
    (line,) = lines(log)
    assert "secret" not in str(line)
    assert line["message"].startswith("the text encoder takes")


def test_the_pipeline_s_own_warning_of_a_long_prompt_has_no_prompt(log: Path) -> None:
    """The real one, so that a module that is renamed is found out."""
    from safelight.runtime import DiffusionPipeline, bundled_model

    pipeline: Any = DiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime")
    pipeline.set_progress_bar_config(disable=True)
    pipeline("unspeakable " * 200, num_inference_steps=1, output_type="latent")
    found = lines(log)
    assert any("cut off" in line["message"] for line in found)
    assert "unspeakable" not in log.read_text()


def test_an_exception_is_shown_without_what_a_client_may_have_said(log: Path) -> None:
    for error in (ValueError("a secret"), KeyError("a secret"), OSError(28, "No space left", "/tmp/x")):
        try:
            raise error
        except Exception:
            logging.getLogger("safelight.runtime.serving.app").exception("failed")
    logs.event("failed", error=ValueError("a secret"))
    value, key, system, event = lines(log)
    assert event["error"]["exception"] == "ValueError"
    assert (value["exception"], value["says"], key["says"]) == ("ValueError", None, None)
    assert "secret" not in log.read_text()
    assert "No space left" in system["says"]
    assert value["raised_in"][-1].endswith("test_an_exception_is_shown_without_what_a_client_may_have_said")


def test_what_asyncio_finds_in_a_task_is_left_out(log: Path) -> None:
    async def lost() -> None:
        async def fails() -> None:
            raise ValueError("a secret")

        task = asyncio.get_running_loop().create_task(fails())
        await asyncio.wait([task])

    asyncio.run(lost())
    (line,) = lines(log)
    assert line["logger"] == "asyncio"
    assert line["exception"] == "ValueError"
    assert "secret" not in log.read_text()


def test_warnings_are_lines(log: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # `catch_warnings` has put its own in place
        logging.captureWarnings(True)
        warnings.warn("of a library", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines(log)
    assert line["logger"] == "py.warnings"
    assert "of a library" in line["message"]


def test_what_cannot_be_a_line_is_counted_and_ends_nothing(log: Path) -> None:
    before = logs.lost()
    logs.event("huge", number=10**5000)  # more digits than Python writes
    assert logs.lost() == before + 1
    logs.event("after")
    first, second = lines(log)
    assert (first["event"], first["lines"]) == ("log_lines_lost", 1)
    assert second["event"] == "after"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room")
def test_a_full_disk_ends_nothing_and_is_counted() -> None:
    before = logs.lost()
    logs.configure("/dev/full")
    try:
        for number in range(3):
            logs.event("request", number=number)
            logging.getLogger("uvicorn.error").error("of uvicorn")
        assert logs.lost() == before + 6
    finally:
        logs.reset()


def test_once_there_is_room_again_the_log_says_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a line: the next line begins anew."""
    file = tmp_path / "server.log"
    logs.configure(str(file))
    room = 40

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        written = real(descriptor, data[:room])
        room -= written
        return written

    real = os.write
    try:
        monkeypatch.setattr(logs.os, "write", write)
        logs.event("torn")
        logs.event("gone")
        monkeypatch.setattr(logs.os, "write", real)
        logs.event("whole")
    finally:
        logs.reset()
    torn, *rest = file.read_text().splitlines()
    assert len(torn) == 40
    told, whole = (json.loads(line) for line in rest)
    assert (told["event"], told["lines"], whole["event"]) == ("log_lines_lost", 2, "whole")


def test_a_write_of_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.log"
    logs.configure(str(file))
    real = os.write
    try:
        monkeypatch.setattr(logs.os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        logs.event("one")
        logs.event("two")
    finally:
        logs.reset()
    assert [line["event"] for line in lines(file)] == ["one", "two"]


def test_several_processes_write_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    code = f"""\
from safelight.runtime.serving import logs
logs.configure({str(file)!r})
for number in range(200):
    logs.event("line", number=number, text="x" * 300)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(line["number"] for line in lines(file)) == sorted([*range(200)] * 2)


def test_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(None)
    try:
        logs.event("seen")
    finally:
        logs.reset()
    logs.event("after")
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "seen"


def test_a_file_that_cannot_be_opened_is_said_at_once_and_changes_nothing(log: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        logs.configure(str(tmp_path / "no-folder" / "server.log"))
    with pytest.raises(IsADirectoryError):
        logs.configure(str(tmp_path))
    logs.event("goes on")
    assert [line["event"] for line in lines(log)] == ["goes on"]


def test_the_file_is_appended_to(log: Path) -> None:
    logs.event("one")
    logs.configure(str(log))
    logs.event("two")
    assert [line["event"] for line in lines(log)] == ["one", "two"]


def test_reset_puts_everything_back(tmp_path: Path) -> None:
    names = ("", "safelight", "uvicorn", "uvicorn.access", "python_multipart")
    own = logging.NullHandler()
    logging.getLogger("uvicorn").addHandler(own)
    logging.getLogger("uvicorn").propagate = False
    logging.getLogger("safelight").setLevel(17)
    logging.captureWarnings(False)

    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in names]
        return [[list(logger.handlers), logger.level, logger.propagate] for logger in loggers]

    before, shown, files = state(), warnings.showwarning, len(list(Path("/proc/self/fd").iterdir()))
    try:
        logs.configure(str(tmp_path / "one.log"))
        logs.configure(str(tmp_path / "two.log"))
        assert state() != before
        logs.reset()
        assert state() == before
        assert warnings.showwarning is shown
        assert len(list(Path("/proc/self/fd").iterdir())) == files
        logs.reset()
        assert state() == before
    finally:
        logging.getLogger("uvicorn").removeHandler(own)
        logging.getLogger("uvicorn").propagate = True
        logging.getLogger("safelight").setLevel(logging.NOTSET)
