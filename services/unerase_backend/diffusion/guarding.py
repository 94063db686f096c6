"""Guards: what a deployed model does beside its weights, and where each acts on a trajectory.

A guard is a class of `diffusion/guards/`, one file each, registered by `guard`. It overrides what it does, in the order
in which a trajectory meets it:

1. `read` sees the words of the prompt, and may rewrite or refuse it;
2. `negative` is encoded in place of the empty prompt, `concept` as a further row of the guidance;
3. `project` changes the prompt's encoding;
4. `guide` makes the guided prediction from those of all rows;
5. `steer` changes the output of the UNet's module `module`;
6. `refuse` sees the finished picture, and `question` has a judge look at it: the picture may be withheld.

This is the only place that says what a guard sees of a conditioning (`Guards.read`, `Guards.project`): of a text, and
of token ids as they are decoded, the words and their encoding; of a prompt with a learned word, the words around it,
and the whole encoding; of an embedding nothing. What resumes, inpaints, or is guided by a classifier keeps the guards
of every step that it takes, and 2 and 4 act where there is guidance.

Modules of guards import torch only where they compute: the catalogue reads their parameters in processes without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakSet

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Trajectory
from unerase_backend.catalogue.guard_kinds import (
    KINDS,
    GuardEntry,
    GuardParameters,
    named_files,
    needs_family,
    needs_rows,
)
from unerase_backend.runtime.components import RegistrationError
from unerase_backend.runtime.errors import PreconditionError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.model import DiffusionModel
    from unerase_backend.diffusion.pictures import Picture
    from unerase_backend.diffusion.prompt import Prompt

AnyGuard = TypeVar("AnyGuard", bound="type[Guard]")


class WithheldError(Exception):
    """A guard refuses a prompt; the message says why."""


@dataclass
class Guidance:
    """One step's predictions of a trajectory, each (channels, height, width), float32 on the model's device."""

    conditioned: Tensor
    empty: Tensor
    """Under the empty prompt, or under what a guard puts in its place."""
    concept: Tensor | None
    """Under the guard's own `concept`; None for a guard without one."""
    scale: float
    """The guidance scale."""
    step: int
    """The step of the schedule, from 0."""
    per_noise: float = 1.0
    """By how much a prediction changes where its noise changes by 1 (`prediction.of_noise_change`): 1 of a model that
    predicts the noise; of one that predicts the velocity or a flow 1 over the signal, 0 where there is hardly any."""


class Guard:
    """A guard of one model; each method by default does nothing. `Parameters` are the keys of its entry."""

    Parameters: ClassVar[type[GuardParameters]] = GuardParameters
    single: ClassVar[bool] = False
    """A model may have only one guard of this kind."""
    rows: ClassVar[int] = 0
    """Rows of the UNet that it adds to each guided step."""
    needs_classifier_free: ClassVar[bool] = False
    """Whether it acts where classifier-free guidance has several rows (2 and 4), and so fits no model without it."""
    families: ClassVar[tuple[str, ...]] = ()
    """The families of models that it is for, as in "stable-diffusion"; none of them stands for all."""
    needs_unet: ClassVar[bool] = False
    """Whether `check_unet` looks at anything, so that it is worth building a UNet without memory for it."""
    kind: ClassVar[str] = ""
    negative: str | None = None
    """The text whose encoding replaces that of the empty prompt."""
    concept: str | None = None
    """The text under which the model makes a further prediction in each step; its kind then has `rows` 1."""
    module: str = ""
    """The name of the UNet's module whose output `steer` changes, as in "mid_block"."""
    question: Question | None = None
    """What a judge is asked about each picture; `threshold` is the score from which the picture is withheld."""
    threshold: float = 1.0

    def __init__(self, parameters: Any, pipeline: Path, device: torch.device) -> None:
        """Load what the guard reads, onto `device`; `pipeline` is the folder of the model.

        Raises:
            UnsafeModelError, PreconditionError: a file is not what the guard needs.
        """
        self.parameters = parameters

    @classmethod
    def files(cls, parameters: Any, pipeline: Path) -> Sequence[Path]:
        """Return the files that it reads, whose digests are part of the model's: by default those that its parameters
        name. `pipeline` is the folder of the model.

        Raises:
            UnsafeModelError: one is missing.
        """
        del pipeline
        return named_files(parameters)

    @classmethod
    def parts(cls, parameters: Any) -> Sequence[str]:
        """Return the folders of the model's pipeline that it reads, which are fetched with a model of the hub; by
        default none.
        """
        del parameters
        return ()

    @classmethod
    def check_files(cls, parameters: Any, pipeline: Path) -> None:
        """Check the guard's files without torch, by configurations and headers.

        Raises:
            UnsafeModelError: a file is not what the guard needs.
        """

    @classmethod
    def check_unet(cls, parameters: Any, unet: Any) -> None:
        """Check that the guard fits a UNet, which may be without memory (on PyTorch's meta device).

        Raises:
            PreconditionError: it does not.
        """

    def check(self, model: DiffusionModel) -> None:
        """Check that the guard fits a model, once for each, when it is loaded.

        Raises:
            PreconditionError: it does not.
        """

    def read(self, text: str) -> str:
        """Return the prompt that the model gets in place of `text`.

        Raises:
            WithheldError: the prompt is refused.
        """
        return text

    def project(self, model: DiffusionModel, prompt: Prompt, learned: Tensor | None, encoding: Encoding) -> Encoding:
        """Return what the denoiser reads in place of a prompt's encoding."""
        del model, prompt, learned
        return encoding

    def guide(self, guidance: Guidance, memory: dict[str, Tensor]) -> Tensor | None:
        """Return the guided prediction; None for classifier-free guidance.

        `memory` is the trajectory's, empty at its first step, also where it resumes; keys begin with the kind.
        """
        del guidance, memory
        return None

    def steer(self, output: Tensor) -> Tensor:
        """Return what replaces the output of `module`; every row by itself."""
        return output

    def refuse(self, picture: Picture) -> str:
        """Return why a picture, (height, width, 3) of uint8, is withheld; empty if it is shown."""
        del picture
        return ""


def guard(kind: str) -> Callable[[AnyGuard], AnyGuard]:
    """Register the decorated class as the guards of `kind`.

    Raises:
        RegistrationError: the kind is taken, or the class is no guard.
    """

    def decorate(kind_class: AnyGuard) -> AnyGuard:
        if not (isinstance(kind_class, type) and issubclass(kind_class, Guard)):
            raise RegistrationError(
                f"the guard {kind!r} must be a subclass of unerase_backend.diffusion.guarding.Guard"
            )
        kind_class.kind = kind
        KINDS.add(kind, kind_class, kind_class.__module__)
        return kind_class

    return decorate


@dataclass(frozen=True, eq=False)
class Guards:
    """The guards of a model, in the order in which they act."""

    guards: tuple[Guard, ...] = ()
    _checked: WeakSet[DiffusionModel] = field(default_factory=WeakSet, repr=False)

    @classmethod
    def load(cls, entries: Iterable[GuardEntry], pipeline: Path, device: torch.device) -> Guards:
        """Load the guards of a model's entries; errors as in `Guard`."""
        kinds: dict[str, Any] = dict(KINDS.all())
        return cls(tuple(kinds[entry.kind](entry.parameters, pipeline, device) for entry in entries))

    @property
    def steers(self) -> bool:
        """Whether a guard changes the output of a module of the denoiser."""
        return any(each.module for each in self.guards)

    @property
    def questions(self) -> list[tuple[Guard, Question]]:
        """The guards that have a judge look at a picture, each with its question."""
        return [(each, each.question) for each in self.guards if each.question is not None]

    def check(self, model: DiffusionModel) -> None:
        """Check that every guard fits the model.

        Raises:
            PreconditionError: one does not.
        """
        if model not in self._checked:
            for each in self.guards:
                if each.needs_classifier_free and not model.backbone.classifier_free:
                    raise PreconditionError(needs_rows(each.kind, model.backbone.title), reason="GUARD_UNFIT")
                if problem := needs_family(each.kind, each.families, model.backbone.family):
                    raise PreconditionError(problem, reason="GUARD_UNFIT")
                each.check(model)
            self._checked.add(model)

    def read(self, model: DiffusionModel, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning that the guards let through; an embedding has no words that they could read.

        Raises:
            WithheldError: a guard refuses the prompt.
        """
        for each in self.guards:
            words = _words(model, conditioning)
            if words is None or (rewritten := each.read(words)) == words:
                continue
            if conditioning.WhichOneof("kind") != "learned":
                conditioning = Conditioning(text=rewritten)
                continue
            if conditioning.learned.placeholder not in rewritten.split():
                raise WithheldError(f"{each.kind}: nothing is left of the prompt's learned word")
            changed = Conditioning()
            changed.CopyFrom(conditioning)
            changed.learned.text = rewritten
            conditioning = changed
        return conditioning

    def prompts(self, model: DiffusionModel, trajectory: Trajectory, conditioning: Conditioning) -> list[Conditioning]:
        """Return what a trajectory's rows of the denoiser read: its conditioning, guards' concepts, the empty prompt.

        It is the conditioning alone without guidance, and of a model whose guidance is not classifier-free.
        """
        if trajectory.guidance_scale == 1 or not model.backbone.classifier_free:
            return [conditioning]
        negative = next((each.negative for each in self.guards if each.negative is not None), "")
        concepts = [Conditioning(text=each.concept) for each in self.guards if each.concept is not None]
        return [conditioning, *concepts, Conditioning(text=negative)]

    def project(self, model: DiffusionModel, conditioning: Conditioning, encoding: Encoding) -> Encoding:
        """Return the encoding of a conditioning as the guards change it; an embedding stays as it is."""
        from unerase_backend.diffusion.conditioning import prepare

        prepared = prepare(model, conditioning) if self.guards else None
        if isinstance(prepared, tuple):
            for each in self.guards:
                encoding = each.project(model, *prepared, encoding)
        return encoding

    def guide(
        self, predicted: Tensor, scale: float, step: int, per_noise: float, memory: dict[str, Tensor]
    ) -> Tensor | None:
        """Return the guided prediction from those of a trajectory's rows, (rows, channels, height, width), in the order
        of `prompts`; None if it is that of classifier-free guidance. See `Guidance` for the rest.
        """
        if len(predicted) == 1:
            return None
        row, guided = 1, None
        for each in self.guards:
            own = predicted[row] if each.concept is not None else None
            row += own is not None
            made = each.guide(Guidance(predicted[0], predicted[-1], own, scale, step, per_noise), memory)
            guided = guided if made is None else made
        return guided

    def refuse(self, picture: Picture) -> str:
        """Return why a picture is withheld; empty if it is shown."""
        return next((f"{each.kind}: {why}" for each in self.guards if (why := each.refuse(picture))), "")


UNGUARDED = Guards()


@contextmanager
def steered(model: DiffusionModel, rows: Iterable[tuple[Guards, Sequence[int]]], batch_rows: int) -> Iterator[None]:
    """Steer the rows of each trajectory while the UNet computes a batch.

    A guard computes all rows of the batch, so that its bits do not depend on how many of them it steers.
    """
    import torch

    by_guard: dict[Guard, list[int]] = {}
    for guards, held in rows:
        for each in guards.guards:
            if each.module:
                by_guard.setdefault(each, []).extend(held)
    with ExitStack() as hooks:
        for each, held in by_guard.items():
            mask = torch.zeros(batch_rows, dtype=torch.bool, device=model.device)
            mask[held] = True
            hook = model.denoiser.get_submodule(each.module).register_forward_hook(_hook(each, mask))
            hooks.callback(hook.remove)
        yield


def _hook(steering: Guard, mask: Tensor) -> Callable[[Any, Any, Any], Any]:
    def change(module: object, inputs: object, output: Any) -> Any:
        import torch

        first = output[0] if isinstance(output, tuple) else output
        chosen = mask.view(-1, *[1] * (first.ndim - 1))
        changed = torch.where(chosen, steering.steer(first), first)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return change


def _words(model: DiffusionModel, conditioning: Conditioning) -> str | None:
    """Return the words of a conditioning; None if it has none."""
    match conditioning.WhichOneof("kind"):
        case "text":
            return conditioning.text
        case "token_ids":
            return model.text_of(conditioning.token_ids.ids)
        case "learned":
            return conditioning.learned.text
    return None
