"""Modules of torch as graphs that onnxruntime computes on a CPU in float32.

A graph is the same function: the operations of the module, in another order of sums. onnxruntime fuses them, lays
channels out in blocks and packs the weights, so that a call takes less time, and a row in a call of few hardly more
than one in a call of many. The bits are other ones than those of torch, and numerics profiles say which were made.

What is written (`graph_writer`) holds no weights, so that every model of one architecture can put its own in. A graph
holds them `COPIES` times, so that modules with `LARGE` parameters and more have none.

What comes out is compared with what the module says. A module that cannot be written, or whose graph says something
else, has none; that depends on the module and on the versions in the numerics profile alone. So whatever else goes
wrong, such as too little memory, is raised. onnxruntime's maximum of a window leaves NaN out, so that a graph may be
finite where numbers in the middle of the module have overflowed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unerase_backend.runtime.exhaustion import is_out_of_memory
from unerase_backend.runtime.graph_rules import CONSTANT, RULES
from unerase_backend.runtime.graph_writer import Recorder, serialized
from unerase_backend.runtime.onnx_runtime import LARGE, installed, runtime_version, session_options

AGREEMENT = 1e-4
"""How far a graph's output may be from its module's, as a share of the greatest value of the output, or of its norm."""

LEAST = 2
"""The fewest rows of a call whose bits are compared with those of a full one: a single row often has bits of its own,
and the sum over a large one is divided among threads."""


class Graph:
    """A written module with weights; inputs and outputs have a row for each row of a call."""

    def __init__(self, session: Any, given: Mapping[str, Tensor]) -> None:
        """Take a session, and inputs like those of all calls."""
        self._session = session
        # What does not change the output is no input of the graph.
        self._read = tuple(each.name for each in session.get_inputs())
        self._rows = rows_like(given)

    def takes(self, given: Mapping[str, Tensor]) -> bool:
        """Return whether inputs have the names, shapes of a row and number types of the first ones."""
        return rows_like(given) == self._rows

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        """Return the first output, (rows, ...)."""
        return self.outputs(given)[0]

    def outputs(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        """Return all outputs, each (rows, ...)."""
        named = {name: given[name].contiguous().numpy() for name in self._read}
        return list(map(torch.from_numpy, self._session.run(None, named)))


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether small modules are computed by graphs."""
    return device.type == "cpu" and dtype == torch.float32 and bool(runtime_version() and installed("onnx"))


def runtime_of(device: torch.device, dtype: torch.dtype) -> str:
    """Return what computes small modules, for a numerics profile."""
    return f"onnxruntime-{runtime_version()}" if computes(device, dtype) else "torch"


def written(call: Callable[..., Tensor], module: torch.nn.Module, given: Mapping[str, Tensor]) -> bytes:
    """Return the graph of a call of a module with named inputs in their order, `graph_writer.ROWS` rows each.

    Its weights bear their names in the module and hold nothing.

    Raises:
        Exception: of any class, if the call cannot be written.
    """
    # In inference mode operations would not come apart.
    with torch.inference_mode(False), torch.no_grad():
        inputs = {name: each.clone() for name, each in given.items()}
        weights = module.state_dict(keep_vars=True)
        with Recorder(RULES, CONSTANT, inputs, weights, backwards=False) as recorder:
            output = call(*inputs.values())
    content: bytes = recorder.writer.model(inputs, {"output": recorder.value_of(output)})
    return content


def open_graph(content: bytes, module: torch.nn.Module, given: Mapping[str, Tensor], threads: int) -> Graph:
    """Return a written graph with a module's weights; `given` are inputs like those of all calls."""
    import onnx
    import onnxruntime

    weights = module.state_dict()
    graph = onnx.load_from_string(content)
    for each in graph.graph.initializer:
        if (weight := weights.get(each.name)) is not None:
            each.raw_data = weight.detach().contiguous().numpy().tobytes()
    options = session_options(threads)
    # The process keeps freed memory itself, and the arena would keep the most that any call took.
    options.enable_cpu_mem_arena = False
    # What was freed last is nearer to the processor than what a plan made in advance would use again.
    options.enable_mem_reuse = False
    content = serialized(graph)
    del graph
    return Graph(onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"]), given)


def checked(build: Callable[[], Graph], call: Callable[..., Tensor], *others: Mapping[str, Tensor]) -> Graph | str:
    """Return the graph that `build` writes and opens, or why the module has none.

    Graph and module are compared on `others`, which should have other numbers of rows than the written inputs.

    Raises:
        Exception: what `reason` raises.
    """
    try:
        graph = build()
        with torch.inference_mode():
            return next(filter(None, (difference(graph(each), call(*each.values())) for each in others)), graph)
    except Exception as error:
        return reason(error)


def shared(
    kept: dict[Any, bytes],
    key: object,
    write: Callable[[], bytes],
    opened: Callable[[bytes], Graph],
    call: Callable[..., Tensor],
    *others: Mapping[str, Tensor],
) -> Graph | str:
    """Return a module's graph as `checked` does, from what `kept` has for modules like it.

    Where that says something else than this module, for example because it has other constants, and where there is
    none, it is written. So a module has the graph that it would have alone.
    """
    reused = key in kept

    def build() -> Graph:
        if key not in kept:
            kept[key] = write()
        return opened(kept[key])

    graph = checked(build, call, *others)
    if reused and isinstance(graph, str):
        del kept[key]
        graph = checked(build, call, *others)
    return graph


def reason(error: Exception) -> str:
    """Return why a module has no graph, for an error of torch or onnxruntime, of whatever class.

    Raises:
        Exception: the error itself, if memory is short, a thread cannot be started, a file is missing or cannot be
            written, or a library is not installed: that says nothing of the module.
    """
    no_thread = "pthread_create failed" in str(error)
    if no_thread or is_out_of_memory(error) or isinstance(error, OSError | ImportError):
        raise error
    return str(error).partition("\n")[0] or type(error).__name__


@torch.inference_mode()
def difference(made: Tensor, expected: Tensor) -> str:
    """Return how the output of a graph is unlike that of its module; empty if both agree."""
    if made.shape != expected.shape:
        return f"of the shape {tuple(made.shape)}, not {tuple(expected.shape)}"
    far = float((made - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return "" if far <= AGREEMENT else f"off by {far:.2g} of the output"


def rows_alike(call: Callable[[Tensor], Tensor], rows: int, full: int) -> bool:
    """Return whether a row has the same bits in every place of a call of `rows` and of one of `full` rows.

    `call` computes some of `rows` different rows, in any order.
    """
    places = torch.arange(rows)
    repeated = torch.arange(full) % rows
    few, moved, many = call(places), call(places.roll(1)), call(repeated)
    return torch.equal(moved, few.roll(1, 0)) and torch.equal(many, few[repeated])


def is_small(module: torch.nn.Module) -> bool:
    """Return whether a module may have a graph."""
    return sum(each.numel() for each in module.parameters()) < LARGE


def rows_like(given: Mapping[str, Tensor]) -> tuple[tuple[object, ...], ...]:
    """Return the names, number types and shapes of a row of inputs."""
    return tuple((name, each.dtype, *each.shape[1:]) for name, each in given.items())
