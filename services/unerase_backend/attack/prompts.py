"""The shared parts of attacks that search for a prompt: permitted tokens, gradients at token embeddings, and draws.

The result of a search is a list of token ids. Trajectories use the ids; the text is for readers only, since tokenising
it again need not give the same ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Sample, TokenIds, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    SAMPLE_STATUS_SCORED,
    Case,
    Finding,
    Observation,
)
from unerase_backend.attack.denoising_loss import losses_and_gradient
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.conditioning import encode_tokens
from unerase_backend.diffusion.gradient_graph import GradientGraph
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.prompt import Prompt
from unerase_backend.evaluation.known_pictures import learnable
from unerase_backend.evaluation.models import SELECTOR
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.spelling import forms, plain, words

Item = TypeVar("Item")

SHORTEST_CONTAINED = 4
"""A word of a name with at least this many letters also bans the longer tokens that contain it."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a search may use: their ids, (n,), and input embeddings, (n, width), in float32 on the CPU."""

    ids: Tensor
    embeddings: Tensor

    @cached_property
    def directions(self) -> Tensor:
        """The embeddings at length 1, (n, width); computed once, because a search asks for them at every step."""
        return functional.normalize(self.embeddings)


def vocabulary(model: DiffusionModel, banned: Sequence[str] = (), *, learned: bool = True) -> Vocabulary:
    """Return the model's tokens that write something, without start, end and padding, and without those that spell a
    `banned` name.

    Without `learned`, the rows of the model's learned words are left out too.

    A token spells a name if it is one of the name's own tokens, equals a form of the name (`spelling.forms`: its words,
    alone and joined), or contains a form of at least four letters: "church" also bans "churches" and "churchyard", and
    "hour_glass" bans "hourglass".
    """
    table = model.backbone.token_table()
    without = set(model.tokenizer.all_special_ids)
    # T5 embeds more tokens than it has words for.
    without |= set(range(len(table))) - set(model.tokenizer.get_vocab().values())
    without |= {token for name in banned for token in words_of(model, name)}
    without |= set() if learned else {row for rows in model.words.values() for row in rows}
    spelled = forms(banned)
    long = [form for form in spelled if len(form) >= SHORTEST_CONTAINED]
    for token, written in _written(model.tokenizer).items() if spelled else ():
        if not spelled.isdisjoint(written) or any(form in each for each in written for form in long):
            without.add(token)
    ids = torch.tensor([token for token in range(len(table)) if token not in without])
    return Vocabulary(ids, table[ids])


@lru_cache(maxsize=8)
def _written(tokenizer: Any) -> Mapping[int, frozenset[str]]:
    """Return what each token writes: its letters and digits, with accents and without."""
    found = {}
    # Vocabularies write the ends of words, spaces and bytes each in its own way; the tokenizer knows which. Tokens that
    # were added to one stand in it as they are.
    added = tokenizer.get_added_vocab()
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    for text, token in tokenizer.get_vocab().items():
        written = text if text in added else tokenizer.decode([token], **options)
        letters = "".join(words(written))
        found[token] = frozenset({letters, plain(letters)})
    return found


def words_of(model: DiffusionModel, text: str) -> list[int]:
    """Return the token ids of a text, without start and end."""
    return model.tokens_of(text)


def room_beside(model: DiffusionModel, tokens: int) -> int:
    """Return how many tokens of text a prompt has room for beside the `tokens` searched for.

    Raises:
        InvalidRequestError: not even those tokens fit.
    """
    room = model.prompt_room - tokens
    if room < 0:
        description = f"must be at most {model.prompt_room}, the length of the model's prompts, not {tokens}"
        raise InvalidRequestError.of(FieldViolation("unit.parameters.tokens", description))
    return room


def target_latents(unit: Unit, workbench: Workbench) -> Tensor:
    """Return the latents of a picture of the concept for each case, (cases, channels, height, width).

    Each case gets another picture of the first half while there are unused ones. The likelihood is measured on the
    second half. The pictures of a concept-free unit are in the order of its cases already: case i's picture shows what
    case i's prompt names.

    Raises:
        InvalidRequestError: the concept has fewer than two pictures.
        NotFoundError, UnreadablePictureError: from the artefact store.
    """
    digests = learnable(unit.target.concept)
    if unit.control_kind != CONTROL_KIND_CONCEPT_FREE:
        order = torch.randperm(len(digests), generator=workbench.generator("picture")).tolist()
        digests = [digests[place] for place in order]
    return workbench.latents([digests[case.index % len(digests)] for case in unit.cases])


def gradients(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    embeddings: Tensor,
    noisy: Tensor,
    times: Tensor,
    wanted: Tensor,
    graph: GradientGraph | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each row's loss, (rows,), and its gradient at the row's embeddings, (rows, tokens, width), on the CPU.

    The loss is the mean over the row's elements of (wanted - output(noisy, time, c))^2, with c the encoding of the
    row's prompt, in which the row's embeddings stand at `learned_at`. `noisy` and `wanted` have the latents' shape. See
    `denoising_loss` for the graph.
    """
    learned = embeddings.detach().to(model.device).requires_grad_()
    encoded = encode_tokens(model, prompts, list(learned))
    losses, gradient = losses_and_gradient(model, graph, learned, encoded, (noisy, times, wanted))
    return losses.cpu(), gradient.cpu()


@dataclass(frozen=True)
class Draw:
    """One prompt to try for a case."""

    case: Case
    ids: Sequence[int]
    text: str
    variant: int
    plain: bool = False
    """The case's own prompt, unchanged."""

    def trajectory(self, unit: Unit) -> Trajectory:
        """Return the trajectory from the case's initial latent, with the token ids as its prompt."""
        given = Conditioning(text=self.text) if self.plain else Conditioning(token_ids=TokenIds(ids=self.ids))
        return Trajectory(
            conditioning=given,
            guidance_scale=guidance_of(unit, self.case),
            latent_seed=self.case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )

    def observation(self, unit: Unit, sample: Sample) -> Observation:
        """Return the observation of the draw's sample."""
        return observe(
            unit,
            sample,
            self.trajectory(unit),
            case_index=self.case.index,
            prompt=self.text,
            variant=self.variant,
        )


class CaseRecord:
    """The draws that one case's search has tried; the one that the selector scores highest decides."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.observations: list[Observation] = []
        self.losses: list[float] = []
        """The loss of every step, with the case's searches one after another."""
        self.succeeded = False
        """The selector sees the concept in some draw. Attacks do not see the answers of the judge, which decide."""
        self.failure = ""
        """The reason why the search had to end; empty if it did not."""
        self._scored: list[tuple[float, Draw]] = []

    def add(self, unit: Unit, draw: Draw, sample: Sample) -> None:
        """Record a draw and its sample."""
        self.observations.append(draw.observation(unit, sample))
        score = -1.0
        if sample.status == SAMPLE_STATUS_SCORED:
            score = sample.judgements[SELECTOR].score
            self.succeeded |= sample.judgements[SELECTOR].detected
        self._scored.append((score, draw))

    def finding(self) -> Finding:
        """Return the deciding draw; with it the case's initial latent gives the same picture again."""
        score, draw = max(self._scored, key=lambda scored: scored[0])
        return Finding(
            case_index=self.case.index,
            prompt=draw.text,
            token_ids=draw.ids,
            losses=self.losses,
            steps=len(self.losses),
            figures={"variant": draw.variant, "selector_score": score, "succeeded": self.succeeded},
        )


def share_of_success(records: Sequence[CaseRecord]) -> float:
    """Return the share of cases in which the selector sees the concept."""
    return sum(record.succeeded for record in records) / len(records)


def conclude(workbench: Workbench, records: Sequence[CaseRecord], steps: int) -> list[Observation]:
    """Report each case's finding and that all `steps` are done, and return the observations."""
    for record in records:
        workbench.finding(record.finding())
    workbench.progress(steps, steps, success=share_of_success(records))
    return [observation for record in records for observation in record.observations]


@dataclass(frozen=True)
class Turn:
    """The steps between two rounds of pictures, among all steps of the search."""

    first: int
    total: int
    success: float

    def progress(self, workbench: Workbench, step: int, losses: Sequence[float]) -> None:
        """Report that `step` of the turn is done, with the loss of each row, and check for cancellation."""
        mean = sum(losses) / len(losses) if losses else None
        workbench.progress(self.first + step + 1, self.total, mean, self.success)


def padded(items: Sequence[Item], rows: int) -> list[Item]:
    """Return the items padded to `rows` with copies of the first, so that shapes do not depend on the cases."""
    return [*items, *[items[0]] * (rows - len(items))]
