"""What `unerase serve` says of itself when it cannot serve: its catalogue at once, a failed part by its own error."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pydantic import ValidationError

import unerase_backend.serve
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError, UnavailableError, UnsafeModelError
from unerase_backend.serve import DeploymentError, _wait
from unerase_backend.serve_errors import definite_errors, deployment_errors, last_error


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unerase", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, **environment},
    )


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A catalogue with a fault in each section."""
    (tmp_path / "erased.pt").touch()
    file = tmp_path / "wrong.yaml"
    content = {
        "models": {"own/pt": {"base": "testbed/reference", "unet": "erased.pt"}},
        "judges": {"own/judge": {"kind": "clip", "path": "nowhere"}},
        "concepts": {"Van Gogh": {"kind": "style", "names": ["Van Gogh"], "pictures": "none.png"}},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_wrong_catalogue_ends_it_with_a_line_for_each_fault(wrong: Path) -> None:
    ended = command("serve", "--catalogue", str(wrong))
    assert ended.returncode == 2
    lines = dict(line.split(": ", 2)[1:] for line in ended.stderr.splitlines())
    assert lines.keys() == {
        "models.own/pt.unet",
        "judges.own/judge.path",
        "concepts.Van Gogh",
        "concepts.Van Gogh.pictures",
    }
    assert "unerase import erased.pt --as unet --out FOLDER" in lines["models.own/pt.unet"]
    assert lines["judges.own/judge.path"] == "does not exist"
    assert all(line.startswith("wrong.yaml: ") for line in ended.stderr.splitlines())


def test_wrong_files_are_reported_together_and_so_are_judges(wrong: Path) -> None:
    other = wrong.with_name("other.yaml")
    other.write_text("models: {own/x: {base: nothing, resolution: 1}}")
    ended = command("serve", "--catalogue", str(wrong), "--catalogue", str(other))
    assert ended.returncode == 2
    assert "wrong.yaml: " in ended.stderr
    assert "other.yaml: " in ended.stderr
    unknown = wrong.with_name("kind.yaml")
    (wrong.parent / "judge").mkdir()
    unknown.write_text("judges: {own/j: {kind: oracle, path: judge}}")
    ended = command("serve", "--catalogue", str(unknown))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("kind.yaml: judges.own/j.kind: there is no kind of judge 'oracle'")


def test_a_local_audit_ends_with_the_same_lines(wrong: Path) -> None:
    audit = ("audit", "own/pt", "--concept", "hourglass", "--local")
    ended = command(*audit, UNERASE_SERVE_CATALOGUES=json.dumps([str(wrong)]))
    serve = command("serve", "--catalogue", str(wrong))
    assert ended.returncode == 2
    assert ended.stderr.startswith(serve.stderr)
    assert "the backend did not start" in ended.stderr.removeprefix(serve.stderr)


def raised(error: Exception) -> str:
    """The text of a traceback as Serve keeps it: one within another."""
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError(traceback.format_exc()) from None
    except RuntimeError:
        return f"A replica failed to start.\n{traceback.format_exc()}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/proc/none"), None),
        (ValueError("first line\nsecond line\n  an indented one"), None),
        (PreconditionError("the address is taken; choose another"), "the address is taken; choose another"),
    ],
)
def test_the_last_error_is_what_python_says_of_it(error: Exception, said: str | None) -> None:
    expected = said or "".join(traceback.format_exception_only(error)).strip()
    assert last_error(raised(error)) == expected


def test_the_words_of_a_validator_stand_alone() -> None:
    with pytest.raises(ValidationError) as caught:
        CoordinatorSettings(artifacts="a", state="s", host="0.0.0.0")
    said = last_error(raised(caught.value))
    assert "host '0.0.0.0' is reachable from other machines" in said
    assert "Value error" not in said


def test_a_text_without_frames_is_kept() -> None:
    assert last_error("The actor died unexpectedly.\n") == "The actor died unexpectedly."
    assert last_error("") == ""


def test_applications_that_failed_alike_share_a_line() -> None:
    def failed(message: str) -> SimpleNamespace:
        return SimpleNamespace(
            status="DEPLOY_FAILED",
            message="Failed to update the deployments",
            deployments={"d": SimpleNamespace(status="DEPLOY_FAILED", message=message)},
        )

    well = SimpleNamespace(status="RUNNING", message="", deployments={})
    status = SimpleNamespace(applications={"a": failed("x"), "b": well, "c": failed("y"), "d": failed("x")})
    assert deployment_errors(status) == ["a, d could not be started: x", "c could not be started: y"]


def starting(*errors: Exception | None) -> SimpleNamespace:
    """The status of applications that start, each after a failed try with its error; None: none failed yet."""
    return SimpleNamespace(
        applications={
            str(number): SimpleNamespace(
                status="DEPLOYING",
                message="",
                deployments={
                    "d": SimpleNamespace(
                        status="UPDATING",
                        message=f"Retrying 2 more time(s). Error:\n{raised(error)}" if error is not None else "",
                    )
                },
            )
            for number, error in enumerate(errors)
        }
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/proc/none"), "FileNotFoundError: [Errno 2] No such file"),
        (PreconditionError("the address is taken"), "the address is taken"),
        (UnsafeModelError("unet is missing"), "unet is missing"),
        (ImportError(), "ImportError"),
        (UnavailableError("the database does not answer"), ""),
        (ExhaustedError("the device has too little memory"), ""),
        (ConnectionRefusedError(111, "Connection refused"), ""),
        (TimeoutError(), ""),
        (MemoryError(), ""),
        (RuntimeError("The actor died unexpectedly"), ""),
    ],
)
def test_what_another_try_would_meet_again_ends_the_start_at_once(error: Exception, said: str) -> None:
    found = definite_errors(starting(None, error))
    assert len(found) == bool(said)
    assert all(line.startswith(f"1 could not be started: {said}") for line in found)


def test_the_start_waits_for_what_may_pass_and_ends_with_what_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unerase_backend.serve, "_POLLING_SECONDS", 0)
    well = SimpleNamespace(applications={"a": SimpleNamespace(status="RUNNING", message="", deployments={})})
    shown = iter([SimpleNamespace(applications={}), starting(None), starting(UnavailableError("not yet")), well])
    _wait(lambda: next(shown), 1)
    assert next(shown, None) is None
    shown = iter([starting(None), starting(ValueError("never")), well])
    with pytest.raises(DeploymentError, match="0 could not be started: ValueError: never"):
        _wait(lambda: next(shown), 1)
    assert next(shown) is well


def test_what_serve_has_given_up_ends_the_start_whatever_the_error() -> None:
    status = starting(UnavailableError("not yet"))
    status.applications["0"].status = status.applications["0"].deployments["d"].status = "DEPLOY_FAILED"
    with pytest.raises(DeploymentError, match="0 could not be started: not yet"):
        _wait(lambda: status, 1)


@pytest.mark.backends
def test_a_part_that_cannot_start_is_reported_by_its_own_error(tmp_path: Path) -> None:
    environment = {"UNERASE_SERVE_ARTIFACTS": "file:///proc/none", "UNERASE_SERVE_RAY_AUTH": "disabled"}
    ended = command("serve", "--port", "0", "--data-dir", str(tmp_path), **environment)
    assert ended.returncode == 1
    assert "could not be started: FileNotFoundError: [Errno 2] No such file or directory: '/proc/none'" in ended.stderr
    assert "Traceback" not in ended.stderr
