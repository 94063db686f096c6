"""The models that erasers edit in these tests."""

import copy

import pytest

from unerase_backend.testbed import clip, erasers, storage, unet
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.train import WEIGHTS


@pytest.fixture(scope="module")
def tower() -> clip.CLIPTextModel:
    return clip.text_tower(clip.untrained(bpe.build(), 0))


@pytest.fixture
def subject(tower: clip.CLIPTextModel) -> erasers.Subject:
    model = unet.untrained(0).eval().requires_grad_(False)
    storage.rounded(model)
    return erasers.Subject(model, copy.deepcopy(tower), bpe.build(), unet.scheduler())


@pytest.fixture
def trained() -> erasers.Subject:
    """The shipped reference, which tells names apart."""
    return erasers.Subject(
        storage.load_unet(WEIGHTS), storage.load_text_encoder(WEIGHTS), bpe.build(), unet.scheduler()
    )
