"""The steps of two attacks as their authors' code takes them, with diffusers' and transformers' own parts.

UnlearnDiffAtk: Zhang et al., arXiv 2310.11868, section 4; its code attacks one prompt at a time, so a step is one row.
Textual inversion: Gal et al., arXiv 2208.01618, equation 2, as Pham et al., arXiv 2308.01508, use it: a batch a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TEMPLATES = ("a {}", "a picture of a {}", "a photo of a {}", "an image of a {}")


class TokenAttack:
    """UnlearnDiffAtk's search for one prompt: `tokens` relaxed tokens before it."""

    def __init__(self, pipeline: Any, prompt: str, tokens: int, learning_rate: float = 0.01) -> None:
        self._pipeline = pipeline
        self._table: Tensor = pipeline.text_encoder.get_input_embeddings().weight.detach()
        words = pipeline.tokenizer(prompt, add_special_tokens=False).input_ids
        self._ids = _framed(pipeline.tokenizer, [0] * tokens + words)
        self.relaxed = torch.full((tokens, len(self._table)), 1 / len(self._table), requires_grad=True)
        self._optimiser = torch.optim.Adam([self.relaxed], learning_rate, weight_decay=0.1)
        self._draws = torch.Generator().manual_seed(1)

    def step(self, clean: Tensor, noise: Tensor, timestep: int) -> float:
        """Take one step at one timestep, and return its loss."""
        drawn = functional.one_hot(
            torch.multinomial(self.relaxed.detach(), 1, generator=self._draws)[:, 0], len(self._table)
        )
        # Straight through: the value of the drawn tokens, the gradient at their relaxation.
        chosen = drawn + self.relaxed - self.relaxed.detach()
        loss = self.loss(chosen @ self._table, clean, noise, timestep)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.relaxed.grad is not None  # noqa: S101 - the loss depends on it
        self.relaxed.grad.clamp_(-1, 1)
        self._optimiser.step()
        with torch.no_grad():
            self.relaxed.copy_(_onto_simplex(self.relaxed))
        return loss.item()

    def loss(self, embeddings: Tensor, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Return the denoising error with these embeddings, (tokens, width), in the tokens' places."""
        time = torch.tensor([timestep])
        with _replaced(self._pipeline.text_encoder, [(0, 1, embeddings)]):
            encoded = self._pipeline.text_encoder(torch.tensor([self._ids]))[0]
        noisy = self._pipeline.scheduler.add_noise(clean, noise, time)
        return functional.mse_loss(self._pipeline.unet(noisy, time, encoder_hidden_states=encoded).sample, noise)


class Inversion:
    """Textual inversion: an embedding of some tokens, learned from the latents of pictures.

    `latents` are (pictures, channels, height, width), `word` the vocabulary's word to start from and how many tokens.
    """

    def __init__(self, pipeline: Any, latents: Tensor, word: tuple[str, int], batch_size: int) -> None:
        initial_token, tokens = word
        self._pipeline, self._latents, self._batch_size = pipeline, latents, batch_size
        table: Tensor = pipeline.text_encoder.get_input_embeddings().weight.detach()
        (first,) = pipeline.tokenizer(initial_token, add_special_tokens=False).input_ids
        self.embedding = table[first].repeat(tokens, 1).requires_grad_()
        self._optimiser = torch.optim.Adam([self.embedding], 0.1)
        tokenizer = pipeline.tokenizer
        self.prompts = []
        for template in TEMPLATES:
            before = tokenizer(template.replace("{}", ""), add_special_tokens=False).input_ids
            ids = [*before, *[0] * tokens]
            self.prompts.append((_framed(tokenizer, ids), 1 + len(before)))

    def step(self, seed: int) -> float:
        """Take one step with random pictures, templates, timesteps and noise, and return its loss."""
        draws, rows = torch.Generator().manual_seed(seed), self._batch_size
        clean = self._latents[torch.randint(len(self._latents), (rows,), generator=draws)]
        prompts = [self.prompts[i] for i in torch.randint(len(TEMPLATES), (rows,), generator=draws).tolist()]
        scheduler = self._pipeline.scheduler
        times = torch.randint(scheduler.config.num_train_timesteps, (rows,), generator=draws)
        noise = torch.randn(clean.shape, generator=draws)
        places = [(row, place, self.embedding) for row, (_, place) in enumerate(prompts)]
        with _replaced(self._pipeline.text_encoder, places):
            encoded = self._pipeline.text_encoder(torch.tensor([ids for ids, _ in prompts]))[0]
        noisy = scheduler.add_noise(clean, noise, times)
        loss = functional.mse_loss(self._pipeline.unet(noisy, times, encoder_hidden_states=encoded).sample, noise)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return loss.item()


@contextmanager
def _replaced(text_encoder: Any, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """Put embeddings, (tokens, width), into rows of the text encoder's input, each from its place on."""

    def put_in(module: object, inputs: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for row, place, embedding in places:
            embedded[row, place : place + len(embedding)] = embedding
        return embedded

    hook = text_encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        hook.remove()


def _framed(tokenizer: Any, words: Sequence[int]) -> list[int]:
    ids = [tokenizer.bos_token_id, *words[: tokenizer.model_max_length - 2], tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def _onto_simplex(rows: Tensor) -> Tensor:
    """Duchi et al., ICML 2008, figure 1."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    places = torch.arange(1, rows.shape[1] + 1)
    support = (ordered * places > excess).sum(1, keepdim=True)
    return (rows - excess.gather(1, support - 1) / support).clamp(min=0)
