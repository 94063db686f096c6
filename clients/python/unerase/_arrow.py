"""Observations as an Arrow table; needs pyarrow (the extra `arrow`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import grpc

from unerase._errors import UneraseError

if TYPE_CHECKING:
    import pyarrow

JUDGES = ("selector", "judge", "second_judge")
"""The judges of an observation in the order of its judgements; the columns of each begin with its name."""


def need_arrow() -> None:
    """Check that pyarrow is installed, before anything is fetched.

    Raises:
        UneraseError: FAILED_PRECONDITION, pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise UneraseError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "observations as a table need pyarrow; install it with: pip install 'unerase[arrow]'",
            reason="ARROW_MISSING",
        )


def table_of(content: bytes) -> pyarrow.Table:
    """Return the table that a Parquet file holds.

    Raises:
        UneraseError: DATA_LOSS, the content is not a Parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException as error:
        raise UneraseError(
            grpc.StatusCode.DATA_LOSS,
            f"the observations are not a complete Parquet file: {error}",
            reason="PARQUET_UNREADABLE",
        ) from None
