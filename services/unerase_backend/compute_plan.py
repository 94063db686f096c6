"""Chooses how `unerase serve` computes: dtype, batch shapes, models in memory, and each room's share of a GPU.

The choice rests on the largest model of the catalogue and on the memory that is free. With one GPU, generation, attack
and judges share it: each gets a stated share, for Ray and as a bound of its memory, so that no room can take another's.
With several GPUs generation has all but one of them. On a CPU an unused row of a batch costs as much time as a used
one, so that large models get few rows there; `generation_workers` decides how many processes make pictures, each with
how many threads. What a user sets is taken as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType

from unerase_backend.catalogue import Catalogue, JudgeEntry, hub
from unerase_backend.catalogue.digests import judge_paths
from unerase_backend.catalogue.judge_files import DETECTOR, detector_path
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.diffusion.memory import ModelSize, folder_parameters, pipeline_size
from unerase_backend.diffusion.shapes import BATCH_ROWS, DECODE_BATCH, GRADIENT_ROWS
from unerase_backend.generation_workers import Workers, large_model_workers, small_model_workers
from unerase_backend.machine import Card, Cores, cores, free_memory
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UneraseError
from unerase_backend.runtime.onnx_runtime import LARGE
from unerase_backend.serve_settings import ServeSettings

ROWS = (BATCH_ROWS, 64, 48, 32, 24, 16, 12, 8, 6, 4, 2)
DECODES = (DECODE_BATCH, 4, 2, 1)
GRADIENT_CHOICES = (GRADIENT_ROWS, 16, 12, 8, 6, 4, 2, 1)
# Subject, reference, control and a derived model; two are enough to compare.
_MODELS = (4, 3, 2)
_FEW_ROWS = 8
_ROWS_ON_A_CPU, _GRADIENT_ROWS_ON_A_CPU = 4, 1
# Of a share: allocators leave gaps, and the libraries have workspaces.
_USABLE = 0.9
# The context of each process on a GPU.
_CONTEXT = 500_000_000
# On a CPU: a replica of generation without its models, and all other processes (docs/performance.md).
_PROCESS, _OTHERS = 450_000_000, 1_900_000_000
# Subject, reference and control, without which a replica would load a model again and again.
_MODELS_OF_AN_AUDIT = 3
_LEAST_UNITS, _UNITS_OF_A_REPLICA = 6, 3
_JUDGES_LEAST = 0.1
_GENERATION_PART = 0.55
_JUDGE_MARGIN = 1.5
# Kinds of judges that read the folder's safetensors alone.
_OF_SAFETENSORS = ("classifier", "clip")
_GIGABYTE = 1e9
_ONE_CORE = Cores(1)


@dataclass(frozen=True)
class Shapes:
    """The fixed shapes of the calls, and how many models stay in memory."""

    batch_rows: int = BATCH_ROWS
    decode_batch: int = DECODE_BATCH
    models_in_memory: int = _MODELS[0]
    gradient_rows: int = GRADIENT_ROWS
    models_kept: int = _MODELS[0]


@dataclass(frozen=True)
class ComputePlan:
    """How the rooms compute."""

    device: str
    dtype: str
    shapes: Shapes
    generation_replicas: int = 1
    generation_threads: int = 1
    """Of each replica."""
    generation_share: float = 0.0
    """Of a GPU, for each replica; 0 on a CPU."""
    attack_share: float = 0.0
    judge_share: float = 0.0
    reason: str = ""
    """What the choice rests on, for the operator."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the number of replicas rests on, by name."""
    beyond: tuple[str, ...] = ()
    """What was set and is more than the machine has, in words."""

    @property
    def concurrent_units(self) -> int:
        """Units in flight that keep all replicas busy while others wait for their judges."""
        return max(_LEAST_UNITS, _UNITS_OF_A_REPLICA * self.generation_replicas)

    def lines(self) -> list[str]:
        """Return the plan as the lines that `unerase serve` prints."""
        shapes = self.shapes
        of_gpu = (f" ({share:.2f} of a GPU)" if share else "" for share in self._shares())
        generation, attack, judges = of_gpu
        replicas = "" if self.generation_replicas == 1 else f"{self.generation_replicas} x "
        if self.device == "cpu":
            replicas += f"{counted(self.generation_threads, 'thread')}, "
        return [
            f"computing in {self.dtype} on {self.device}: {self.reason}",
            f"  generation{generation}: {replicas}{counted(shapes.batch_rows, 'row')}, "
            f"{counted(shapes.decode_batch, 'picture')} decoded at once, "
            f"{counted(shapes.models_in_memory, 'model')} in memory",
            f"  attack{attack}: {counted(shapes.gradient_rows, 'row')} with gradients, "
            f"{counted(shapes.models_kept, 'model')} in memory",
            f"  judges{judges}: float32",
            *(f"  beware: {each}" for each in self.beyond),
        ]

    def explained(self) -> list[str]:
        """Return the plan and what it rests on, as the lines that `unerase serve --explain` prints."""
        width = max(map(len, self.inputs), default=0)
        inputs = [f"  {name:{width}}  {value}" for name, value in self.inputs.items()]
        return [*self.lines(), "what this rests on:", *inputs]

    def _shares(self) -> tuple[float, float, float]:
        return self.generation_share, self.attack_share, self.judge_share


@dataclass(frozen=True)
class Load:
    """What is to be computed: the catalogue's largest model, by name, and the bytes of all judges."""

    model: str
    size: ModelSize
    judge_bytes: int


def load_of(catalogue: Catalogue) -> Load | None:
    """Return what a catalogue asks of a device; None if none of its models can be used."""
    sizes = dict(_model_sizes(catalogue))
    if not sizes:
        return None
    largest = max(sizes, key=lambda name: (sizes[name].denoiser_parameters, sizes[name].pixels))
    return Load(largest, sizes[largest], sum(_judge_bytes(catalogue)))


Given = Mapping[str, int | None]
"""The shapes that a user set, by the names of `Shapes`; None where none was set."""


def plan_of(load: Load | None, settings: ServeSettings, found: Sequence[Card]) -> ComputePlan:
    """Return the plan for the GPUs `found`, or for this machine's CPU if there are none; what is set stands.

    Raises:
        ValueError: the largest model does not fit.
    """
    given = {each.name: getattr(settings, each.name) for each in fields(Shapes)}
    device = settings.model_copy(update={"device": "cuda" if found else "cpu"})
    replicas, threads = settings.generation_replicas, settings.generation_threads
    if not found:
        plan = plan_cpu(load, device.precision, free_memory(), replicas, given, there=cores(), threads=threads)
        return replace(plan, inputs={**plan.inputs, **_settings(settings)})
    if settings.gpu_memory_gb is not None:
        bound = int(settings.gpu_memory_gb * _GIGABYTE)
        found = [replace(card, free_bytes=min(card.free_bytes, bound)) for card in found]
    plan = plan_gpus(load, device.precision, found, replicas, given)
    return replace(plan, generation_threads=threads or 1, inputs={**plan.inputs, **_settings(settings)})


def plan_gpus(
    load: Load | None,
    dtype: str,
    cards: Sequence[Card],
    replicas: int | None = None,
    given: Given = MappingProxyType({}),
) -> ComputePlan:
    """Return the plan for GPUs of the kind of `cards`; the one with the least free memory counts.

    Raises:
        ValueError: the largest model does not fit.
    """
    if load is None:
        raise ValueError("device: no model of the catalogue can be used, so that nothing can be planned for a GPU")
    free = min(card.free_bytes for card in cards)
    judges = max(_JUDGES_LEAST, (load.judge_bytes * _JUDGE_MARGIN + _CONTEXT) / free)
    if len(cards) == 1:
        replicas = replicas or 1
        generation = (1 - judges) * _GENERATION_PART
        attack, each = 1 - judges - generation, generation / replicas
    else:
        replicas = replicas or len(cards) - 1
        attack, each = 1 - judges, min(1.0, (len(cards) - 1) / replicas)
    shapes = _shapes(load, dtype, free * each - _CONTEXT, free * attack - _CONTEXT, given, on_gpu=True)
    named = f"{len(cards)} x {cards[0].name}" if len(cards) > 1 else cards[0].name
    reason = f"{named} with {free / _GIGABYTE:.1f} GB free; {_said(load)}"
    inputs = {
        "cards": f"{len(cards)}; generation has all but one, or a share of the only one",
        "memory": f"{_gigabytes(free)} free on a card",
        "model": _said(load),
    }
    return ComputePlan(
        "cuda",
        dtype,
        shapes,
        replicas,
        generation_share=_floor(each),
        attack_share=_floor(attack),
        judge_share=_floor(judges),
        reason=reason,
        inputs=inputs,
    )


def plan_cpu(
    load: Load | None,
    dtype: str,
    free_bytes: int,
    replicas: int | None = None,
    given: Given = MappingProxyType({}),
    *,
    there: Cores = _ONE_CORE,
    threads: int | None = None,
) -> ComputePlan:
    """Return the plan for a CPU with `free_bytes` of memory and the cores that are `there`.

    Small models get the shapes of the testbed.

    Raises:
        ValueError: the largest model does not fit.
    """
    said = _said(load) if load is not None else "no model of the catalogue can be used"
    inputs = {"cores": str(there), "memory": f"{_gigabytes(free_bytes)} free", "model": said}
    reason = f"{counted(there.usable, 'core')}, {inputs['memory']}; {said}"
    if load is None or load.size.denoiser_parameters < LARGE:
        shapes = _with(Shapes(), given)
        each = float(replica_bytes(load, dtype, shapes))
        left = float(free_bytes - other_bytes(load, dtype, shapes))
        workers = small_model_workers(there.usable, left, each, replicas, threads)
    else:
        left = (free_bytes - load.judge_bytes * _JUDGE_MARGIN) * _GENERATION_PART
        each = replica_bytes(load, dtype, Shapes(_ROWS_ON_A_CPU, 1, _MODELS_OF_AN_AUDIT)) / _USABLE
        workers = large_model_workers(there.usable, left, each, replicas, threads)
        shapes = _large_on_a_cpu(load, dtype, free_bytes, workers.replicas, given)
    inputs["memory"] += f", {_gigabytes(left)} of it for pictures; a process that makes them takes {_gigabytes(each)}"
    inputs["replicas"] = f"{workers.replicas}, {workers.reason}"
    beyond = tuple(_beyond(workers, there, left, each))
    return ComputePlan(
        "cpu", dtype, shapes, workers.replicas, workers.threads, reason=reason, inputs=inputs, beyond=beyond
    )


def _beyond(workers: Workers, there: Cores, left: float, each: float) -> Iterator[str]:
    """Yield in what the processes that make pictures, which may be set, are more than the machine has."""
    if workers.replicas * workers.threads > there.usable:
        busy = f"{counted(workers.replicas, 'worker')} of {counted(workers.threads, 'thread')}"
        yield f"{busy} that make pictures share {counted(there.usable, 'core')}, and slow each other down"
    if workers.replicas > 1 and workers.replicas * each > left:
        take = f"{workers.replicas} workers that make pictures take {_gigabytes(workers.replicas * each)}"
        yield f"{take}, and {_gigabytes(max(left, 0))} are free for them; they may be killed"


def replica_bytes(load: Load | None, dtype: str, shapes: Shapes) -> int:
    """Return the bytes that one replica of generation takes on a CPU, as if no two models shared weights."""
    if load is None:
        return _PROCESS
    size = load.size
    computing = shapes.batch_rows * size.row_bytes(dtype) + shapes.decode_batch * size.decoded_bytes()
    models = shapes.models_in_memory * (size.weight_bytes(dtype) + size.graph_bytes(dtype))
    return _PROCESS + models + computing


def other_bytes(load: Load | None, dtype: str, shapes: Shapes) -> int:
    """Return the bytes that all other processes take on a CPU: Ray, attacks, judges, probes and the coordinator."""
    if load is None:
        return _OTHERS
    size = load.size
    models = shapes.models_kept * (size.weight_bytes(dtype) + size.gradient_graph_bytes(dtype))
    attack = models + shapes.gradient_rows * size.gradient_row_bytes(dtype)
    return _OTHERS + attack + int(load.judge_bytes * _JUDGE_MARGIN)


def _large_on_a_cpu(load: Load, dtype: str, free_bytes: int, replicas: int, given: Given) -> Shapes:
    shares = free_bytes - load.judge_bytes * _JUDGE_MARGIN
    fitting = _shapes(load, dtype, shares * _GENERATION_PART / replicas, shares * (1 - _GENERATION_PART), given)
    few = replace(
        fitting,
        batch_rows=min(fitting.batch_rows, _ROWS_ON_A_CPU),
        decode_batch=1,
        gradient_rows=min(fitting.gradient_rows, _GRADIENT_ROWS_ON_A_CPU),
    )
    return _with(few, given)


def _shapes(load: Load, dtype: str, generation: float, attack: float, given: Given, *, on_gpu: bool = False) -> Shapes:
    """Return the largest shapes whose needs fit into the bytes of generation and of attack, where none is given.

    On a GPU a large text encoder comes to generation for each encoding, while no row is computed, and stays in attack,
    where gradients ask for it.
    """
    size, weights = load.size, load.size.weight_bytes(dtype)
    sampling, visiting = (size.held_bytes(dtype), size.visiting_bytes(dtype)) if on_gpu else (weights, 0)
    row, gradient_row = size.row_bytes(dtype), size.gradient_row_bytes(dtype)
    held, kept = (_choices(given.get(name), _MODELS) for name in ("models_in_memory", "models_kept"))
    decodes, rows = _choices(given.get("decode_batch"), DECODES), _choices(given.get("batch_rows"), ROWS)
    for models in held:
        left = generation * _USABLE - models * sampling
        decode = _largest(decodes, size.decoded_bytes(), left / 3) or decodes[-1]
        row_count = _largest(rows, row, left - decode * size.decoded_bytes())
        if row_count and visiting <= left and (row_count >= _FEW_ROWS or models == held[-1]):
            break
    else:
        raise ValueError(_too_large(load, dtype, "generation", generation, held[-1], rows[-1]))
    gradient_choices = _choices(given.get("gradient_rows"), GRADIENT_CHOICES)
    for few in kept:
        gradient_rows = _largest(gradient_choices, gradient_row, attack * _USABLE - few * weights)
        if gradient_rows and (gradient_rows >= _FEW_ROWS or few == kept[-1]):
            return Shapes(row_count, decode, models, gradient_rows, few)
    raise ValueError(_too_large(load, dtype, "attack", attack, kept[-1], gradient_choices[-1]))


def _choices(given: int | None, choices: Sequence[int]) -> Sequence[int]:
    return choices if given is None else (given,)


def _with(shapes: Shapes, given: Given) -> Shapes:
    return replace(shapes, **{name: value for name, value in given.items() if value is not None})


def _largest(choices: Sequence[int], each: int, within: float) -> int:
    # A single choice is the user's.
    return next((choice for choice in choices if choice * each <= within or len(choices) == 1), 0)


def _too_large(load: Load, dtype: str, room: str, given: float, models: int, rows: int) -> str:
    needed = f"{counted(models, 'model')} and {counted(rows, 'row')} in {dtype}"
    needed += f" do not fit into the {max(given, 0) / _GIGABYTE:.1f} GB"
    todo = "free memory, take a larger device or a dtype of 16 bits, or set smaller shapes"
    return f"device: {_said(load)}; {needed} that {room} can have; {todo}"


def _said(load: Load) -> str:
    size = load.size
    said = f"the largest model is {load.model!r}, {_millions(size.denoiser_parameters)} parameters in its denoiser"
    return f"{said} and {_millions(sum(size.text_parameters))} in its text encoders"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.{0 if parameters >= 1e7 else 1}f} million"


def _settings(settings: ServeSettings) -> dict[str, str]:
    """Return what a user set of the choices, by name."""
    chosen = (*(each.name for each in fields(Shapes)), "generation_replicas", "generation_threads", "gpu_memory_gb")
    found = {name: value for name in chosen if (value := getattr(settings, name)) is not None}
    return {"set": ", ".join(f"{name}={value}" for name, value in found.items()) or "nothing; all of it is chosen"}


def _gigabytes(size: float) -> str:
    return f"{max(size, 0) / _GIGABYTE:.1f} GB"


def _floor(share: float) -> float:
    # Ray counts GPUs to four digits, and the shares together must not be more than one.
    return int(share * 100) / 100


def _model_sizes(catalogue: Catalogue) -> Iterable[tuple[str, ModelSize]]:
    for name, entry in catalogue.models.items():
        # A model that cannot be used is marked where models are listed; it neither stops nor decides a plan.
        with suppress(ValueError, OSError, UneraseError):
            # Nothing is fetched from the hub for a plan.
            if entry.base is not None or not entry.fetched or check_model(catalogue, name).problems:
                continue
            if (folder := entry.folder) is not None:
                yield name, pipeline_size(folder, entry.resolution, entry.max_sequence_length)


def _judge_bytes(catalogue: Catalogue) -> Iterable[int]:
    for entry in catalogue.judges.values():
        # What is wrong with a judge is said by its own check; nothing is fetched from the hub for a plan.
        with suppress(ValueError, OSError, UneraseError):
            folder = entry.path or hub.fetched(str(entry.hub), str(entry.revision))
            if folder is not None:
                yield _bytes_of_judge(entry, folder)


def _bytes_of_judge(entry: JudgeEntry, folder: Path) -> int:
    if entry.kind == DETECTOR:
        return detector_path(entry, folder).stat().st_size
    in_float32 = folder_parameters(folder) * 4
    if entry.kind in _OF_SAFETENSORS:
        return in_float32
    # What a third party's judge reads of its folder is not known here.
    return max(in_float32, sum(path.stat().st_size for path in judge_paths(folder, None if entry.hub else folder)))
