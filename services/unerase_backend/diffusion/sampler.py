"""The batched sampler: any set of trajectories of one model, each at its own timestep with its own settings.

One tick is one UNet call. Its rows hold all trajectories in flight: a guided trajectory takes two rows (empty prompt
and conditioning) and one for each concept of its guards (`guarding`), an unguided one takes one, and the results of
unused rows are ignored. New trajectories start as others finish. Each step begins with classifier-free guidance (Ho and
Salimans, arXiv 2207.12598) of the model's output (`prediction`):

    output = output_empty + scale * (output_conditioning - output_empty)

A model of a family whose guidance is in the network (`Backbone.guidance`) has one row, which reads the scale if the
network does.

Guidance by a classifier follows (`classifier`), if the trajectory has one, and then the step of `schedule`. If the
trajectory inpaints, the given picture's latents are then put around the mask. The mask is a central square of latent
cells: the picture's square, rounded outward to whole cells. The result is the latents that the last step reaches, or,
if the trajectory asks for the estimate, that step's x0, with the picture's clean latents around the mask.

A trajectory begins from its initial noise n, from given latents, or from a picture with latents y: after k steps at
a y + s n, with the signal a and the spread s that step k reaches (`path`).

Every call has the same shape, or a smaller one that computes the same bits (`fewer_rows`), so a trajectory's bits do
not depend on what shares its batch, on its position, or on when it started. Classifiers are called in a fixed shape of
half as many rows. A trajectory's initial noise is drawn from its latent seed; the noise of step k is the k-th draw from
its noise seed. Each has its own CPU generator.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion import conditioning, pictures
from unerase_backend.diffusion.classifier import LatentClassifier, log_probability_gradient
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.fewer_rows import call_denoiser
from unerase_backend.diffusion.fields import within
from unerase_backend.diffusion.given import NOTHING_GIVEN, Given, check_given
from unerase_backend.diffusion.guarding import WithheldError, steered
from unerase_backend.diffusion.kept_encodings import KeptEncodings
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.prediction import of_noise_change
from unerase_backend.diffusion.schedule import noise_step
from unerase_backend.diffusion.shapes import BATCH_ROWS, DECODE_BATCH
from unerase_backend.diffusion.tensors import from_message
from unerase_backend.diffusion.walk import Walk
from unerase_backend.runtime.errors import InvalidRequestError, PreconditionError
from unerase_backend.runtime.pictures import square_margin

# Ticks that a finished trajectory may wait for others to share its decoding.
DECODE_PATIENCE = 4
# Steps whose noise is drawn in one call, for latents of which a call costs more than the numbers.
DRAWS_AT_ONCE, FEW_NUMBERS = 8, 4096


@dataclass(frozen=True)
class Finished:
    """A finished trajectory."""

    key: str
    latents: Tensor
    """The last latents, or the estimate in their place, (channels, height, width), float32 on the CPU."""
    picture: Picture | None
    """The picture, (height, width, 3), if one was asked for and could be made."""
    failure: str = ""
    """Why it cannot be scored, or is withheld; empty otherwise."""
    withheld: bool = False
    """A guard refused the prompt, so that there are no latents, or withheld the picture."""


@dataclass
class _Flight:
    key: str
    trajectory: Trajectory
    picture: bool
    start: Tensor | None
    given: Given
    # What its rows of the UNet read, in order.
    prompts: list[Conditioning]
    steered: bool
    slot: int = -1
    rows: tuple[int, ...] = ()
    noise: torch.Generator | None = None
    # What its guards remember from step to step.
    memory: dict[str, Tensor] = field(default_factory=dict)


class Sampler:
    """Steps trajectories of one model. All work happens in `tick`, and only one thread may use it."""

    def __init__(
        self,
        model: DiffusionModel,
        *,
        batch_rows: int = BATCH_ROWS,
        decode_batch: int = DECODE_BATCH,
        in_full: bool = False,
    ) -> None:
        """Prepare calls of `batch_rows` rows, with `in_full` never of fewer."""
        if batch_rows < 2:
            raise ValueError("a guided trajectory needs two rows")
        self.model = model
        self.batch_rows = batch_rows
        self._decode_batch, self._in_full = decode_batch, in_full
        self._kept = KeptEncodings(model, decode_batch)
        self._walk = cache(partial(Walk.of, model.schedule))
        self._waiting: deque[_Flight] = deque()
        self._flights: dict[str, _Flight] = {}
        self._undecoded: list[tuple[_Flight, Tensor]] = []
        self._refused: list[Finished] = []
        self._patience = DECODE_PATIENCE
        self.rows_computed, self.rows_called = 0, batch_rows
        """Rows in use in the last tick's call of the UNet, 0 if there was none, and all rows of the last call."""
        device, training = model.device, model.schedule.training_timesteps
        # A slot holds a trajectory; a row is a row of the UNet's batch. There are equally many of both, because all
        # trajectories may be unguided. Idle slots and rows are computed with the others and ignored.
        self._free_slots = list(reversed(range(batch_rows)))
        self._free_rows = list(reversed(range(batch_rows)))
        self._latents = torch.zeros((batch_rows, *model.latent_shape), device=device)
        # The noise of some steps, of which the next takes the one at `_drawn`.
        self._noise = torch.zeros((batch_rows, draws_at_once(model.latent_shape), *model.latent_shape))
        self._drawn = 0
        self._step = torch.zeros(batch_rows, dtype=torch.long)
        self._end = torch.full((batch_rows,), -1, dtype=torch.long)
        self._times = torch.zeros((batch_rows, training), dtype=model.schedule.time_type)
        self._levels = torch.zeros((batch_rows, training, 2))
        self._coefficients = torch.zeros((batch_rows, training, 3))
        self._guidance = torch.ones((batch_rows, 1, 1, 1), device=device)
        self._conditioned_row = torch.zeros(batch_rows, dtype=torch.long, device=device)
        self._empty_row = torch.zeros(batch_rows, dtype=torch.long, device=device)
        self._slot_of_row = torch.zeros(batch_rows, dtype=torch.long, device=device)
        self._prompts = model.prepared(conditioning.empty_encoding(model)).zeros(batch_rows)
        self._slots = torch.arange(batch_rows)
        # For inpainting: the cells that the model paints, the clean latents around them, the initial noise, and the
        # factors of both after each step.
        self._painted = torch.ones((batch_rows, 1, *model.latent_shape[1:]), dtype=torch.bool, device=device)
        self._around = torch.zeros((batch_rows, *model.latent_shape), device=device)
        self._initial = torch.zeros((batch_rows, *model.latent_shape), device=device)
        self._around_factors = torch.zeros((batch_rows, training, 2))

    @property
    def busy(self) -> bool:
        """Whether a tick has anything to do."""
        return bool(self._waiting or self._flights or self._undecoded or self._refused)

    @property
    def room(self) -> int:
        """Rows that are still free once everything that waits has started; not positive if nothing more could start."""
        return len(self._free_rows) - sum(len(flight.prompts) for flight in self._waiting)

    @property
    def rows_in_use(self) -> int:
        """Rows of the UNet's batch that belong to a trajectory."""
        return self.batch_rows - len(self._free_rows)

    def admit(self, key: str, trajectory: Trajectory, *, picture: bool = True, given: Given = NOTHING_GIVEN) -> None:
        """Queue a trajectory under a unique key; it starts when there is room, in order of arrival.

        `given` holds the pictures and the classifier that it names, and its guards, which may refuse its prompt.

        Raises:
            InvalidRequestError: its conditioning, steps, resumption, mask, picture or classifier does not fit the
                model; fields are relative to the trajectory.
            PreconditionError: a guard does not fit the model, or needs more rows than the batch has.
        """
        self._walk(trajectory.steps)
        start = None
        if trajectory.HasField("resumption") and not trajectory.resumption.picture_digest:
            start = from_message(trajectory.resumption.latents, "resumption.latents", self.model.latent_shape)
        try:
            conditioning.prepare(self.model, trajectory.conditioning)
        except InvalidRequestError as error:
            raise within("conditioning", error) from None
        check_given(self.model, trajectory, given)
        given.guards.check(self.model)
        try:
            read = given.guards.read(self.model, trajectory.conditioning)
            prompts = given.guards.prompts(self.model, trajectory, read)
        except WithheldError as refusal:
            self._refused.append(Finished(key, torch.empty(0), None, str(refusal), withheld=True))
            return
        if len(prompts) > self.batch_rows:
            message = f"the model's guards need {len(prompts)} rows for a trajectory, the batch has {self.batch_rows}"
            raise PreconditionError(message, reason="BATCH_TOO_SMALL")
        self._waiting.append(_Flight(key, trajectory, picture, start, given, prompts, given.guards.steers))

    @torch.inference_mode()
    def cancel(self, key: str) -> None:
        """Cancel a trajectory; its rows are free for the next tick."""
        self._waiting = deque(flight for flight in self._waiting if flight.key != key)
        self._undecoded = [item for item in self._undecoded if item[0].key != key]
        self._refused = [item for item in self._refused if item.key != key]
        if (flight := self._flights.get(key)) is not None:
            self._land(flight)

    @torch.inference_mode()
    def tick(self) -> list[Finished]:
        """Advance everything in flight by one step, and return what has finished."""
        self._take_off()
        finished, self._refused = self._refused, []
        self.rows_computed = self.rows_in_use
        if self._flights:
            self._advance()
            for slot in (self._step == self._end).nonzero().flatten().tolist():
                finished += self._arrive(slot)
        self._patience -= 1
        if not self._undecoded:
            self._patience = DECODE_PATIENCE
        elif len(self._undecoded) >= self._decode_batch or self._patience <= 0 or not self._flights:
            finished += self._decode()
        return finished

    def run(
        self, trajectories: Sequence[Trajectory], *, picture: bool = True, given: Sequence[Given] = ()
    ) -> list[Finished]:
        """Run trajectories to their end and return them in order; the sampler must be idle when this is called."""
        for index, trajectory in enumerate(trajectories):
            self.admit(str(index), trajectory, picture=picture, given=given[index] if given else NOTHING_GIVEN)
        finished: dict[str, Finished] = {}
        while self.busy:
            finished |= {item.key: item for item in self.tick()}
        return [finished[str(index)] for index in range(len(trajectories))]

    def _take_off(self) -> None:
        starting: list[_Flight] = []
        free = len(self._free_rows)
        while self._waiting:
            needed = len(self._waiting[0].prompts)
            if needed > free:
                break
            free -= needed
            starting.append(self._waiting.popleft())
        if starting:
            encodings = iter(self._kept.prompts([prompt for flight in starting for prompt in flight.prompts]))
            self._kept.encode_pictures([(flight.trajectory, flight.given) for flight in starting])
            for flight in starting:
                self._start(flight, [next(encodings) for _ in flight.prompts])

    def _start(self, flight: _Flight, encodings: list[Encoding]) -> None:
        trajectory = flight.trajectory
        flight.slot = slot = self._free_slots.pop()
        flight.rows = tuple(self._free_rows.pop() for _ in flight.prompts)
        self._flights[flight.key] = flight
        self._conditioned_row[slot], self._empty_row[slot] = flight.rows[0], flight.rows[-1]
        self._guidance[slot] = trajectory.guidance_scale
        self._slot_of_row[list(flight.rows)] = slot
        encodings[0] = flight.given.guards.project(self.model, flight.prompts[0], encodings[0])
        for row, encoding in zip(flight.rows, encodings, strict=True):
            self._prompts[row] = self.model.prepared(encoding.guided(trajectory.guidance_scale))
        steps = trajectory.steps
        walk = self._walk(steps)
        self._times[slot, :steps] = walk.times
        self._levels[slot, :steps] = walk.rounded
        self._coefficients[slot, :steps] = walk.coefficients(trajectory.eta, trajectory.variance_scale)
        done = trajectory.resumption.step
        self._step[slot] = done
        self._end[slot] = end = trajectory.stop_step or steps
        shape = self.model.latent_shape
        initial = torch.randn(shape, generator=torch.Generator().manual_seed(trajectory.latent_seed))
        start = initial if flight.start is None else flight.start
        if trajectory.resumption.picture_digest:
            of_picture, of_noise = walk.kept[done - 1]
            start = of_picture * self._kept.pictures[trajectory.resumption.picture_digest] + of_noise * initial
        self._latents[slot] = start.to(self._latents)
        if trajectory.HasField("inpainting"):
            margin = square_margin(shape[1], trajectory.inpainting.mask_share)
            self._painted[slot] = False
            self._painted[slot, :, margin : shape[1] - margin, margin : shape[2] - margin] = True
            self._around[slot] = self._kept.pictures[trajectory.inpainting.picture_digest].to(self._around)
            self._initial[slot] = initial.to(self._initial)
            self._around_factors[slot, :steps] = walk.kept
        if trajectory.estimate:
            self._coefficients[slot, end - 1] = walk.estimate(end - 1)
            self._around_factors[slot, end - 1] = torch.tensor([1.0, 0.0])
        if trajectory.eta > 0:
            flight.noise = torch.Generator().manual_seed(trajectory.noise_seed)
            for _ in range(done):
                torch.randn(shape, generator=flight.noise)
            self._draw(flight)

    def _draw(self, flight: _Flight) -> None:
        """Draw a trajectory's noise of this step and of those that are kept with it."""
        if flight.noise is not None:
            ahead = self._noise[flight.slot, self._drawn :]
            torch.randn(ahead.shape, generator=flight.noise, out=ahead)

    def _advance(self) -> None:
        model = self.model
        step = self._step.clamp(max=self._times.shape[1] - 1)
        times = self._times[self._slots, step].to(model.device)
        coefficients = self._coefficients[self._slots, step].to(model.device)
        of_rows = self._predict(times[self._slot_of_row])
        empty = of_rows.index_select(0, self._empty_row)
        predicted = empty + self._guidance * (of_rows.index_select(0, self._conditioned_row) - empty)
        for flight in (each for each in self._flights.values() if each.given.guards.guards):
            scale, place = flight.trajectory.guidance_scale, int(step[flight.slot])
            per_noise = float(of_noise_change(model.prediction, Level(*self._levels[flight.slot, place])))
            guided = flight.given.guards.guide(of_rows[list(flight.rows)], scale, place, per_noise, flight.memory)
            if guided is not None:
                predicted[flight.slot] = guided
        self._guide_by_classifiers(predicted, step)
        noise = self._noise[:, self._drawn].to(model.device)
        self._latents = noise_step(self._latents, predicted, noise, coefficients)
        if any(flight.trajectory.HasField("inpainting") for flight in self._flights.values()):
            factors = self._around_factors[self._slots, step].to(model.device)
            of_picture, of_noise = factors[:, :, None, None, None].unbind(1)
            around = of_picture * self._around + of_noise * self._initial
            self._latents = torch.where(self._painted, self._latents, around)
        self._step += 1
        self._drawn = (self._drawn + 1) % self._noise.shape[1]
        if self._drawn == 0:
            for flight in self._flights.values():
                self._draw(flight)

    def _predict(self, times: Tensor) -> Tensor:
        """Return the denoiser's output at each row's time; what guards steer, the denoiser's modules compute."""
        model, latents = self.model, self._latents.index_select(0, self._slot_of_row).to(self.model.dtype)
        held = [(each.given.guards, each.rows) for each in self._flights.values() if each.steered]
        # Where there is no graph, one call of the modules computes all rows.
        together = bool(held) and model.graph is None
        free = [row for each in self._flights.values() if not (each.steered or together) for row in each.rows]
        if free:
            output, self.rows_called = call_denoiser(model, latents, times, self._prompts, free, in_full=self._in_full)
        else:
            output, self.rows_called = torch.zeros_like(latents, dtype=torch.float32), 0
        if held:
            with steered(model, held, self.batch_rows):
                of_modules = model.predict(latents, times, self._prompts).float()
            rows = slice(None) if together else [row for _, rows in held for row in rows]
            output[rows] = of_modules[rows]
            self.rows_called += self.batch_rows
        return output

    def _guide_by_classifiers(self, predicted: Tensor, step: Tensor) -> None:
        """Subtract each guided slot's scaled classifier gradient from its noise; `predicted` is changed in place."""
        guided: dict[LatentClassifier, list[_Flight]] = {}
        for flight in self._flights.values():
            if flight.given.classifier is not None:
                guided.setdefault(flight.given.classifier, []).append(flight)
        if not guided:
            return
        levels = Level(*self._levels[self._slots, step].to(self.model.device).unbind(1))
        rows = self.batch_rows // 2
        for classifier, flights in guided.items():
            for start in range(0, len(flights), rows):
                chunk = flights[start : start + rows]
                slots = [flight.slot for flight in chunk]
                filled = slots + [slots[0]] * (rows - len(slots))
                gradient = log_probability_gradient(classifier, self._latents[filled], levels[filled])[: len(slots)]
                scales = torch.tensor([flight.trajectory.classifier_guidance.scale for flight in chunk])
                factors = levels[slots].spread * scales.to(self._latents)
                factors *= of_noise_change(self.model.prediction, levels[slots])
                predicted[slots] -= factors[:, None, None, None] * gradient

    def _arrive(self, slot: int) -> list[Finished]:
        flight = next(flight for flight in self._flights.values() if flight.slot == slot)
        latents = self._latents[slot].cpu().clone()
        self._land(flight)
        if not bool(torch.isfinite(latents).all()):
            return [Finished(flight.key, latents, None, "the latents are not finite")]
        if not flight.picture:
            return [Finished(flight.key, latents, None)]
        self._undecoded.append((flight, latents))
        return []

    def _decode(self) -> list[Finished]:
        waiting, self._undecoded = self._undecoded, []
        self._patience = DECODE_PATIENCE
        made = pictures.decode(self.model, [latents for _, latents in waiting], self._decode_batch)
        return [_shown(flight, latents, picture) for (flight, latents), picture in zip(waiting, made, strict=True)]

    def _land(self, flight: _Flight) -> None:
        del self._flights[flight.key]
        slot = flight.slot
        self._free_slots.append(slot)
        self._free_rows += reversed(flight.rows)
        self._end[slot], self._guidance[slot], self._painted[slot] = -1, 1, True
        steps = self._times, self._levels, self._coefficients, self._around_factors
        for each in (*steps, self._latents, self._noise, self._around, self._initial):
            each[slot] = 0
        self._slot_of_row[list(flight.rows)] = slot


def draws_at_once(shape: Sequence[int]) -> int:
    """Return how many draws of a shape one call makes: torch fills portions of 16 numbers, as in single draws."""
    return DRAWS_AT_ONCE if (numbers := math.prod(shape)) % 16 == 0 and numbers <= FEW_NUMBERS else 1


def _shown(flight: _Flight, latents: Tensor, picture: Picture | None) -> Finished:
    if picture is None:
        return Finished(flight.key, latents, None, "the picture is not finite")
    if refusal := flight.given.guards.refuse(picture):
        return Finished(flight.key, latents, None, refusal, withheld=True)
    return Finished(flight.key, latents, picture)
