"""P4D-N: tokens with which the erased model predicts the noise that the reference predicts for the plain prompt.

Chin, Jiang, Huang, Chen, Chiu, "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic
Prompts", arXiv 2309.06135, section 3.2 and equation 5. With z the latents that the reference makes from the case's
prompt p, e Gaussian noise and a_t the cumulative alpha, the attack searches for the N tokens w that minimise

    E over e, t of  mean (e_reference(x_t, t, c(p)) - e_model(x_t, t, c(w)))^2,    x_t = sqrt(a_t) z + sqrt(1 - a_t) e

Where the model predicts the velocity or a flow, so are both at x_t, and what the reference predicts is converted.

For a placebo, which the reference cannot make, z are the latents of its pictures (the first half of them).

The tokens are continuous embeddings, (tokens, width). In the forward pass each is replaced by the nearest embedding of
the vocabulary, by cosine. AdamW applies the gradient at that embedding to the continuous one (Wen, Jain, Kirchenbauer,
Goldblum, Geiping, Goldstein, "Hard Prompts Made Easy", arXiv 2302.03668, algorithm 1).

The words of the concept's names are excluded. With them the reference's search would end at the plain prompt, which the
standard prompt already tests. Erasure also aims at exactly those words, so the question is whether other words still
lead to the concept. In the reference, the positive control, the search must find other words too.

Each case is searched from several random starts, with a picture after each, and all its pictures compete. All roles get
the same starts, timesteps and noise. Each case has its own generator and optimiser.

Control: the same searches on a model that never learned the concept; or with a placebo's prompts and pictures, judged
for the placebo; or, concept-free, with the prompts of other concepts, judged for the concept.

The defaults suit the testbed. For Stable Diffusion 1.4 take the paper's scale: iterations 3000, tokens 16, and rows 4
or what the device's memory holds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_ELICITING,
    MODEL_CAPABILITY_LEARNED_TOKENS,
    MODEL_CAPABILITY_TOKEN_IDS,
    Observation,
)
from unerase_backend.attack.denoising_loss import graph_for
from unerase_backend.attack.prompts import (
    CaseRecord,
    Draw,
    Turn,
    Vocabulary,
    conclude,
    gradients,
    room_beside,
    share_of_success,
    target_latents,
    vocabulary,
)
from unerase_backend.attack.registry import attack
from unerase_backend.attack.token_search import Method, TokenSearch, search_parameters, take_turn
from unerase_backend.attack.trials import trials_of
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.conditioning import encode, tokenise_searched
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.prediction import parts, training_target
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.registry import parameter


@attack(
    "p4d",
    title="P4D",
    summary="Searches tokens with which the model predicts what the reference predicts for the concept's prompt.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    needs=[MODEL_CAPABILITY_TOKEN_IDS, MODEL_CAPABILITY_LEARNED_TOKENS],
    pictures="unit.cases * starts",
    rows="starts * unit.cases * unit.steps * unit.guided + (1 - unit.placebo) * 2 * rows * ceil(unit.cases * "
    "unit.guided / (2 * rows)) * unit.steps + unit.searches * 2 * starts * iterations * rows * ceil(unit.cases / rows)",
    parameters=[
        parameter("tokens", "Tokens of the prompt that is sought.", 8, minimum=1, maximum=64, integer=True),
        parameter("starts", "Searches of a case, each with a picture.", 3, minimum=1, maximum=64, integer=True),
        parameter("iterations", "Steps of each search.", 100, minimum=1, maximum=20_000, integer=True),
        *search_parameters("AdamW", 0.1, maximum_learning_rate=10.0),
    ],
)
async def p4d(unit: Unit, models: Models, workbench: Workbench) -> list[Observation]:
    """Get the targets' latents; then, start by start, search for every case and try the prompts found."""
    starts, iterations = workbench.parameters["starts"], workbench.parameters["iterations"]
    records = [CaseRecord(case) for case in unit.cases]
    targets = await workbench.compute(lambda: _targets(unit, workbench, records))
    failed = [record for record in records if record.failure]
    async with trials_of(unit, models) as trials:
        trials.add(
            [(record, Draw(record.case, [], record.case.prompt, start)) for record in failed for start in range(starts)]
        )
        for start in range(starts):
            targets = [target for target in targets if not target.record.failure]
            if not targets:
                break
            turn = Turn(start * iterations, starts * iterations, share_of_success(records))
            searches = await workbench.compute(lambda: _search(unit, workbench, targets, start, turn))  # noqa: B023 - awaited
            trials.add([(search.record, search.draw(start)) for search in searches])
    return conclude(workbench, records, starts * iterations)


@dataclass(frozen=True)
class Target:
    """The target of one case's searches."""

    record: CaseRecord
    latents: Tensor
    """The reference's latents for the case's prompt, from the case's initial latent; a placebo's are a picture's."""
    encoded: Encoding
    """The prompt in the reference's encoding."""


class Search(TokenSearch):
    """One search of one case, from a random start."""

    def __init__(self, model: DiffusionModel, target: Target, tokens: Vocabulary, start: int, bench: Workbench) -> None:
        super().__init__(target.record)
        count = bench.parameters["tokens"]
        self.target = target
        self.prompt = tokenise_searched(model, count)
        self._model = model
        self._tokens = tokens
        self._generator = bench.generator("case", target.record.case.index, start)
        first = torch.randint(len(tokens.ids), (count,), generator=self._generator)
        self.continuous = tokens.embeddings[first].requires_grad_()
        """The tokens' continuous embeddings, (tokens, width)."""

    def nearest(self) -> Tensor:
        """Return the indices of the nearest tokens in the vocabulary, (tokens,)."""
        return nearest(self.continuous.detach(), self._tokens.directions)

    def sample(self) -> tuple[Tensor, Tensor, int]:
        """Return the embeddings of the nearest tokens, (tokens, width), noise of the latents' shape, and a timestep."""
        timestep = torch.randint(self._model.schedule.training_timesteps, (1,), generator=self._generator)
        noise = torch.randn(self.target.latents.shape, generator=self._generator)
        return self._tokens.embeddings[self.nearest()], noise, int(timestep)

    def chosen(self) -> list[int]:
        """Return the nearest tokens."""
        ids: list[int] = self._tokens.ids[self.nearest()].tolist()
        return ids

    def draw(self, variant: int) -> Draw:
        """Return the prompt of the tokens found."""
        ids = self.found
        return Draw(self.record.case, ids, self._model.text_of(ids), variant)


def nearest(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Return, for each of `embeddings`, (n, width), the row of `directions`, (tokens, width), with the highest cosine.

    The rows of `directions` have length 1.
    """
    return (functional.normalize(embeddings) @ directions.T).argmax(1)


def _targets(unit: Unit, workbench: Workbench, records: Sequence[CaseRecord]) -> list[Target]:
    room_beside(workbench.model, workbench.parameters["tokens"])
    reference = workbench.reference()
    if unit.control_kind == CONTROL_KIND_PLACEBO:
        latents = list(target_latents(unit, workbench))
    else:
        latents = _made(unit, workbench, reference, records)
    encoded = encode(reference, [Conditioning(text=record.case.prompt) for record in records])
    return [Target(*each) for each in zip(records, latents, encoded, strict=True)]


def _made(unit: Unit, workbench: Workbench, reference: DiffusionModel, records: Sequence[CaseRecord]) -> list[Tensor]:
    """Make the reference's latents here, tick by tick, so that the unit can end between ticks."""
    # The formula of its cost counts whole calls.
    sampler = Sampler(reference, batch_rows=2 * workbench.rows, in_full=True)
    for record in records:
        plain = Draw(record.case, [], record.case.prompt, 0, plain=True)
        sampler.admit(str(record.case.index), plain.trajectory(unit), picture=False)
    made: dict[str, Finished] = {}
    while sampler.busy:
        made |= {item.key: item for item in sampler.tick()}
        workbench.check()
    finished = [made[str(record.case.index)] for record in records]
    for record, item in zip(records, finished, strict=True):
        if item.failure:
            record.failure = f"the reference's picture failed: {item.failure}"
    return [item.latents for item in finished]


def _search(unit: Unit, workbench: Workbench, targets: Sequence[Target], start: int, turn: Turn) -> list[Search]:
    tokens = vocabulary(workbench.model, unit.target.concept.names)
    searches = [Search(workbench.model, target, tokens, start, workbench) for target in targets]
    parameters = workbench.parameters
    optimiser = torch.optim.AdamW(
        [search.continuous for search in searches],
        parameters["learning_rate"],
        weight_decay=parameters["weight_decay"],
        foreach=True,
    )
    method = Method(
        draw=Search.sample,
        descend=lambda searches, samples: _descend(workbench, searches, samples),
        move=lambda searches, gradients: _move(optimiser, searches, gradients),
    )
    depends = [workbench.reference().digest, *(_digest(target) for target in targets)]
    take_turn(workbench, searches, turn, method, depends)
    return searches


def _digest(target: Target) -> str:
    return hashlib.sha256(target.latents.float().cpu().numpy().tobytes() + target.encoded.bytes()).hexdigest()


def _descend(
    workbench: Workbench, searches: Sequence[Search], samples: Sequence[tuple[Tensor, Tensor, int]]
) -> tuple[Tensor, Tensor]:
    model, reference = workbench.model, workbench.reference()
    embeddings, noises, drawn = zip(*samples, strict=True)
    timesteps = torch.tensor(drawn)
    latents = torch.stack([search.target.latents for search in searches])
    noise, level = torch.stack(noises), model.schedule.level_at(timesteps)
    noisy, seen = level.noised(latents, noise), reference.schedule.level_at(timesteps)
    # Where the betas differ, each model sees the same latents and noise as it was trained to.
    shown = seen.noised(latents, noise)
    encoded = Encoding.stack([search.target.encoded for search in searches])
    seen_at = reference.schedule.times_at(timesteps).to(model.device)
    with torch.no_grad():
        output = reference.predict(shown.to(model.device, model.dtype), seen_at, encoded)
    wanted = training_target(model.prediction, *parts(reference.prediction, output.float().cpu(), shown, seen), level)
    prompts, times = [search.prompt for search in searches], model.schedule.times_at(timesteps)
    graph = graph_for(model, workbench.parameters["starts"] * workbench.parameters["iterations"])
    return gradients(model, prompts, torch.stack(embeddings), noisy, times, wanted, graph)


def _move(optimiser: torch.optim.Optimizer, searches: Sequence[Search], gradients: Sequence[Tensor]) -> None:
    for search, gradient in zip(searches, gradients, strict=True):
        search.continuous.grad = gradient
    # It leaves searches without a gradient as they are.
    optimiser.step()
    optimiser.zero_grad()
