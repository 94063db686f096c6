"""The flow that erasers edit in these tests."""

import copy

import pytest

from unerase_backend.testbed import clip, storage
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.flow import erasers, transformer
from unerase_backend.testbed.flow.recipe import SECOND_TEXT_LAYERS, SECOND_TEXT_WIDTH


@pytest.fixture(scope="module")
def towers() -> tuple[clip.CLIPTextModelWithProjection, ...]:
    tokenizer = bpe.build()
    second = clip.untrained(tokenizer, 1, SECOND_TEXT_WIDTH, SECOND_TEXT_LAYERS)
    return clip.text_encoder(clip.untrained(tokenizer, 0)), clip.text_encoder(second)


@pytest.fixture
def subject(towers: tuple[clip.CLIPTextModelWithProjection, ...]) -> erasers.Subject:
    model = transformer.untrained(0).eval().requires_grad_(False)
    storage.rounded(model)
    return erasers.Subject(model, copy.deepcopy(towers), bpe.build(), transformer.scheduler())
