"""onnxruntime as every room uses it: the same bits each time, and no threads but those that are counted."""

from importlib import metadata
from typing import Any

LARGE = 100_000_000
"""Parameters from which a module has no graph (`graphs`), and a CPU gets few rows."""
LARGEST_DECODED = 64
"""Pixels on a side of the largest pictures whose decoder has a graph: writing one takes a call of many pictures."""
COPIES = 2
"""How many copies of a module's weights its graph holds: as they are, and packed."""
GRADIENT_COPIES = 4
"""The same of a gradient's graph, which has them mirrored as well."""


def session_options(threads: int) -> Any:
    """Return the options of a session that computes with so many threads.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Errors are raised; warnings about a file's age are for its author.
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def runtime_version() -> str:
    """Return onnxruntime's version, which fixes the bits of what it computes; empty if it is not installed."""
    return installed("onnxruntime") or installed("onnxruntime-gpu")


def installed(distribution: str) -> str:
    """Return an installed distribution's version; empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
