import pickle

import grpc
import pytest

from unerase_backend.runtime import errors
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, UneraseError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UneraseError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_process_boundary(kind: type[UneraseError]) -> None:
    error = kind(
        "message",
        reason="REASON",
        metadata={"a": "b"},
        violations=[FieldViolation("field", "wrong")],
        retry_after_seconds=2.5,
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "message"


def test_a_code_belongs_to_each_error_and_none_is_ok() -> None:
    assert all(kind.code is not grpc.StatusCode.OK for kind in KINDS)
    assert all(kind.reason.isupper() for kind in KINDS)


def test_a_bad_request_lists_its_violations() -> None:
    error = InvalidRequestError.of(FieldViolation("a", "is wrong"), FieldViolation("b[1]", "is too long"))
    assert str(error) == "a: is wrong; b[1]: is too long"
    assert [violation.field for violation in error.violations] == ["a", "b[1]"]
