"""UnlearnDiffAtk: a few adversarial words before the prompt, found with the erased model's own denoising loss.

Zhang, Jia, Chen, Chen, Zhang, Liu, Ding, Liu, "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still
Easy To Generate Unsafe Images ... For Now", arXiv 2310.11868, section 4. No other model is needed: a picture of the
concept takes the classifier's place. With z the latents of that picture, e Gaussian noise, a_t the cumulative alpha
and p the prompt, the attack searches for the k tokens w that minimise

    E over e of  mean (e - e_model(x_t, t, c(w, p)))^2,    x_t = sqrt(a_t) z + sqrt(1 - a_t) e

with the velocity or the flow in e's place where the model predicts that.

Each token is relaxed to a row over the vocabulary, (k, tokens), in the simplex, uniform at first. The forward pass
draws a token from its row. The backward pass applies the gradient at the drawn one-hot vector, clipped to [-1, 1], to
the row (straight through). After each step of Adam the rows are projected onto the simplex (Duchi, Shalev-Shwartz,
Singer, Chandra, "Efficient Projections onto the l1-Ball for Learning in High Dimensions", 2008, figure 1).

The timesteps are those of DDIM, or those nearest to a flow's steps, from noisy to clean, with `iterations` steps at
each. After each timestep a picture is made with the most probable tokens. Variant 0 is the plain prompt and variant n
the picture after the n-th timestep, so the best of a case's draws includes the plain prompt. All roles get the same
pictures, timesteps and noise. Each case has its own target picture, from the first half of the concept's pictures (the
likelihood is measured on the second), its own generator and its own optimiser.

The published attack ends a case at its first success. Here the selector would decide what a success is, and it errs on
the pictures of a damaged model, so the attack would end early for such models. Every case therefore has all its draws
unless `stop_at_success` is 1.

Control: the same searches on a model that never learned the concept; or with a placebo's prompts and pictures, judged
for the placebo; or, concept-free, with the prompts and pictures of other concepts, judged for the concept.

The defaults suit the testbed. For Stable Diffusion 1.4 take the paper's scale: timesteps 50, iterations 40, tokens 3
(5 where the concept is many things, as nudity is), and rows 4 or what the device's memory holds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
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
    words_of,
)
from unerase_backend.attack.registry import attack
from unerase_backend.attack.token_search import Method, TokenSearch, search_parameters, take_turn
from unerase_backend.attack.trials import trials_of
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.conditioning import tokenise_searched
from unerase_backend.diffusion.prediction import training_target
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.registry import parameter


@attack(
    "unlearn-diff-atk",
    title="UnlearnDiffAtk",
    summary="Searches adversarial words before the prompt that lower the model's denoising error on the concept.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    needs=[MODEL_CAPABILITY_TOKEN_IDS, MODEL_CAPABILITY_LEARNED_TOKENS],
    pictures="unit.cases * (1 + timesteps)",
    rows="(1 + timesteps) * unit.cases * unit.steps * unit.guided + max(unit.searches, stop_at_success) * "
    "timesteps * iterations * rows * ceil(unit.cases / rows)",
    least_pictures=2,
    parameters=[
        parameter("tokens", "Adversarial tokens before the prompt.", 3, minimum=1, maximum=16, integer=True),
        parameter("timesteps", "Timesteps, with a picture after each.", 10, minimum=1, maximum=200, integer=True),
        parameter("iterations", "Steps at each timestep.", 24, minimum=1, maximum=1000, integer=True),
        *search_parameters("Adam", 0.01, maximum_learning_rate=1.0),
        parameter(
            "stop_at_success",
            "1: end a case once the selector sees the concept.",
            0,
            minimum=0,
            maximum=1,
            integer=True,
        ),
    ],
    required=True,
)
async def unlearn_diff_atk(unit: Unit, models: Models, workbench: Workbench) -> list[Observation]:
    """Try the plain prompts; search at each timestep, and try the prompts found.

    Only a search that stops at success waits for its pictures.
    """
    model, iterations = workbench.model, workbench.parameters["iterations"]
    timesteps: list[int] = model.schedule.visited(workbench.parameters["timesteps"]).tolist()
    records = [CaseRecord(case) for case in unit.cases]
    plain = [Draw(case, words_of(model, case.prompt), case.prompt, 0, plain=True) for case in unit.cases]
    stopping = bool(workbench.parameters["stop_at_success"])
    async with trials_of(unit, models) as trials:
        trials.add(list(zip(records, plain, strict=True)))
        searches, optimiser = await workbench.compute(lambda: _begin(unit, workbench, records))
        for number, timestep in enumerate(timesteps):
            if stopping:
                await trials.recorded()
            searches = [s for s in searches if not (s.record.failure or (stopping and s.record.succeeded))]
            if not searches:
                break
            turn = Turn(number * iterations, len(timesteps) * iterations, share_of_success(records))
            method = _method(workbench, optimiser, timestep)
            await workbench.compute(lambda: take_turn(workbench, searches, turn, method, [str(timestep)]))  # noqa: B023 - awaited
            trials.add([(search.record, search.draw(number + 1)) for search in searches])
    return conclude(workbench, records, len(timesteps) * iterations)


class Search(TokenSearch):
    """One case's search."""

    def __init__(self, workbench: Workbench, record: CaseRecord, tokens: Vocabulary, latents: Tensor) -> None:
        super().__init__(record)
        model, count = workbench.model, workbench.parameters["tokens"]
        self.latents = latents
        self._model = model
        self._tokens = tokens
        self._words = words_of(model, record.case.prompt)[: room_beside(model, count)]
        self.prompt = tokenise_searched(model, count, self._words)
        size = len(tokens.ids)
        self.relaxed = torch.full((count, size), 1 / size, requires_grad=True)
        """The relaxed tokens, (tokens, vocabulary)."""
        self._generator = workbench.generator("case", record.case.index)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings of drawn tokens, (tokens, width), and noise of the latents' shape."""
        cumulative = self.relaxed.detach().double().cumsum(1)
        uniform = torch.rand((len(cumulative), 1), generator=self._generator) * cumulative[:, -1:]
        # Without torch.multinomial the number of draws, and with it the noise, is the same for all models.
        drawn = torch.searchsorted(cumulative, uniform, right=True)[:, 0]
        return self._tokens.embeddings[drawn], torch.randn(self.latents.shape, generator=self._generator)

    def relaxed_gradient(self, gradient: Tensor) -> Tensor:
        """Return the rows' gradient for that at the drawn tokens' embeddings, (tokens, width)."""
        return (gradient @ self._tokens.embeddings.T).clamp(-1, 1)

    def chosen(self) -> list[int]:
        """Return the most probable tokens."""
        ids: list[int] = self._tokens.ids[self.relaxed.detach().argmax(1)].tolist()
        return ids

    def draw(self, variant: int) -> Draw:
        """Return the prompt that begins with the tokens found."""
        ids = [*self.found, *self._words]
        return Draw(self.record.case, ids, self._model.text_of(ids), variant)


def project_onto_simplex(rows: Tensor) -> Tensor:
    """Return the point of the simplex nearest to each row, (rows, n): max(v - theta, 0), which sums to one."""
    values = rows.double()
    # NumPy sorts several times as fast as torch, which also returns the order.
    ordered = torch.from_numpy(np.sort(values.numpy(), axis=1)).flip(1)
    excess = ordered.cumsum(1) - 1
    counts = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    support = (ordered * counts > excess).sum(1, keepdim=True)
    theta = excess.gather(1, support - 1) / support
    return (values - theta).clamp(min=0).to(rows.dtype)


def _begin(
    unit: Unit, workbench: Workbench, records: Sequence[CaseRecord]
) -> tuple[list[Search], torch.optim.Optimizer]:
    """Return each case's search and their optimiser, in which every search counts its own steps."""
    latents = target_latents(unit, workbench)
    tokens = vocabulary(workbench.model)
    searches = [Search(workbench, record, tokens, each) for record, each in zip(records, latents, strict=True)]
    parameters = workbench.parameters
    optimiser = torch.optim.Adam(
        [search.relaxed for search in searches],
        parameters["learning_rate"],
        weight_decay=parameters["weight_decay"],
        foreach=True,
    )
    return searches, optimiser


def _method(workbench: Workbench, optimiser: torch.optim.Optimizer, timestep: int) -> Method[Search]:
    return Method(
        draw=Search.sample,
        descend=lambda searches, samples: _descend(workbench, searches, samples, timestep),
        move=lambda searches, gradients: _move(optimiser, searches, gradients),
    )


def _descend(
    workbench: Workbench, searches: Sequence[Search], samples: Sequence[tuple[Tensor, Tensor]], timestep: int
) -> tuple[Tensor, Tensor]:
    model = workbench.model
    embeddings, noise = (torch.stack(items) for items in zip(*samples, strict=True))
    latents = torch.stack([search.latents for search in searches])
    timesteps = torch.full((len(searches),), timestep)
    level = model.schedule.level_at(timesteps)
    noisy = level.noised(latents, noise)
    target = training_target(model.prediction, latents, noise, level)
    times = model.schedule.times_at(timesteps)
    prompts = [search.prompt for search in searches]
    graph = graph_for(model, workbench.parameters["timesteps"] * workbench.parameters["iterations"])
    return gradients(model, prompts, embeddings, noisy, times, target, graph)


@torch.no_grad()
def _move(optimiser: torch.optim.Optimizer, searches: Sequence[Search], gradients: Sequence[Tensor]) -> None:
    for search, gradient in zip(searches, gradients, strict=True):
        search.relaxed.grad = search.relaxed_gradient(gradient)
    # It leaves searches without a gradient as they are.
    optimiser.step()
    optimiser.zero_grad()
    stacked = torch.stack([search.relaxed for search in searches])
    projected = project_onto_simplex(stacked.flatten(0, 1)).view_as(stacked)
    for search, rows in zip(searches, projected, strict=True):
        search.relaxed.copy_(rows)
