"""Lines of a log, in both forms."""

import builtins
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig

from unerase_backend.runtime import logs, tracing
from unerase_backend.runtime.call_context import AUDIT, REQUEST

LOGGER = logging.getLogger("unerase_backend.somewhere")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (logs.ROOT, "dbos", "asyncio", "grpc", "sqlalchemy")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, kept in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.level, logger.propagate = kept


@pytest.fixture
def in_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Ray Serve does to a replica's process: it takes over `print`, `sys.stdout` and `sys.stderr`."""
    serve = logging.getLogger("ray.serve")
    # As `unerase serve` sets it in the environment.
    monkeypatch.setattr("ray.serve._private.logging_utils.RAY_SERVE_LOG_TO_STDERR", False)
    kept = (builtins.print, sys.stdout, sys.stderr, list(serve.handlers), serve.propagate)
    configure_component_logger(
        component_name="coordinator",
        component_id="1",
        logging_config=LoggingConfig(logs_dir=str(tmp_path / "serve")),
        component_type=ServeComponentType.REPLICA,
        max_bytes=1 << 20,
        backup_count=1,
    )
    assert builtins.print is not kept[0]
    yield
    for handler in serve.handlers:
        handler.close()
    builtins.print, sys.stdout, sys.stderr, serve.handlers, serve.propagate = kept


def _fail(secret: int) -> None:
    try:
        secret // 0
    except ZeroDivisionError as error:
        raise ValueError("odd") from error


@pytest.mark.usefixtures("in_a_replica")
@pytest.mark.parametrize("logger", [LOGGER, logging.getLogger("dbos"), logging.getLogger("asyncio")], ids=str)
def test_an_exception_is_readable_in_a_replica(tmp_path: Path, logger: logging.Logger) -> None:
    for form in ("json", "text"):
        logs.configure(form, form, str(tmp_path))
        try:
            _fail(1)
        except ValueError:
            logger.exception("one failed")
    lines = (tmp_path / "json.log").read_text().splitlines()
    (line,) = (json.loads(line) for line in lines)
    text = (tmp_path / "text.log").read_text()
    for shown in (line["exception"], text):
        assert "('" not in shown
        assert "\nThe above exception was the direct cause of the following exception:\n" in shown
        assert f'  File "{__file__}", line ' in shown
        assert shown.rstrip("\n").endswith("\nValueError: odd")
    assert line["message"] == "one failed"


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
