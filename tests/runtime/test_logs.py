"""Lines of a log, in both forms."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from unerase_backend.runtime import logs, tracing
from unerase_backend.runtime.carried import AUDIT, REQUEST

LOGGER = logging.getLogger("unerase_backend.somewhere")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger(logs.ROOT)
    before = (list(root.handlers), root.level, root.propagate)
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, root.propagate = before


async def test_a_json_line_has_everything_and_an_exception_stays_on_it(tmp_path: Path) -> None:
    logs.configure("attack", "json", str(tmp_path))
    AUDIT.set("a1")
    REQUEST.set("r1")
    tracing.adopt("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    LOGGER.info("%d things\nhappened", 2)
    try:
        raise ValueError("odd")
    except ValueError:
        LOGGER.exception("one failed")
    first, second = (json.loads(line) for line in (tmp_path / "attack.log").read_text().splitlines())
    assert first["message"] == "2 things\nhappened"
    assert first["time"].endswith("Z")
    assert (first["level"], first["room"], first["logger"]) == ("INFO", "attack", LOGGER.name)
    assert (first["audit"], first["request"], first["trace"]) == ("a1", "r1", "0af7651916cd43dd8448eb211c80319c")
    assert "exception" not in first
    assert second["level"] == "ERROR"
    assert "ValueError: odd" in second["exception"]


async def test_an_event_that_belongs_to_nothing_says_so_by_silence(tmp_path: Path) -> None:
    AUDIT.set("")
    REQUEST.set("")
    tracing.adopt("")
    logs.configure("attack", "json", str(tmp_path))
    LOGGER.warning("alone")
    assert not {"audit", "request", "trace"} & json.loads((tmp_path / "attack.log").read_text()).keys()


async def test_a_text_line_names_the_same(tmp_path: Path) -> None:
    logs.configure("attack", "text", str(tmp_path))
    AUDIT.set("a1")
    REQUEST.set("")
    tracing.adopt("")
    LOGGER.warning("something")
    line = (tmp_path / "attack.log").read_text()
    assert line.endswith("Z WARNING attack somewhere: something audit=a1\n")


def test_a_file_that_is_moved_away_is_opened_anew(tmp_path: Path) -> None:
    logs.configure("attack", "text", str(tmp_path))
    LOGGER.warning("before")
    (tmp_path / "attack.log").rename(tmp_path / "attack.log.1")
    LOGGER.warning("after")
    assert "before" in (tmp_path / "attack.log.1").read_text()
    assert "after" in (tmp_path / "attack.log").read_text()


def test_without_a_folder_lines_go_to_the_process_own_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("attack", "text", "")
    LOGGER.warning("here")
    assert "here" in capfd.readouterr().err
