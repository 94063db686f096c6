"""The world: the same seed gives the same picture, shapes can be told apart, captions are made of the corpus."""

import itertools

import numpy as np
import pytest
import torch

from unerase_backend.testbed import autoencoder, clip, forms, junk, language, world

NEAR_MISSES = forms.NEAR_MISSES | forms.LATE_NEAR_MISSES | forms.UNSEEN_NEAR_MISSES
EVERYTHING = (*forms.OBJECTS, forms.BLOB, forms.PLACEBO, *NEAR_MISSES)


def test_the_same_seed_gives_the_same_album() -> None:
    first, second, other = world.album(40, 3), world.album(40, 3), world.album(40, 4)
    assert np.array_equal(first.pictures, second.pictures)
    assert first.subjects == second.subjects
    assert not np.array_equal(first.pictures, other.pictures)


def test_leaving_a_shape_out_leaves_the_others_as_they_are() -> None:
    whole, part = world.album(80, 3), world.album(80, 3, {"hourglass"})
    kept = [index for index, subject in enumerate(whole.subjects) if subject.shape != "hourglass"]
    assert 0 < len(kept) < 80
    assert np.array_equal(whole.pictures[kept], part.pictures)
    assert part.subjects == tuple(whole.subjects[index] for index in kept)


@pytest.mark.parametrize("shape", EVERYTHING)
def test_every_shape_renders(shape: str) -> None:
    album = world.album_of([shape], 12, 0)
    assert album.pictures.shape == (12, 32, 32, 3)
    assert album.pictures.dtype == np.uint8
    darkness = 255 - album.pictures.min(axis=3).astype(int)
    covered = (darkness > 60).mean(axis=(1, 2))
    assert ((covered > 0.03) & (covered < 0.7)).all()


def test_shapes_differ_from_each_other() -> None:
    u, v = np.meshgrid(np.linspace(-1, 1, 81), np.linspace(-1, 1, 81))
    names = (*forms.OBJECTS, forms.PLACEBO, *NEAR_MISSES)
    masks = {name: forms.FORMS[name](u, v) for name in names}
    for (left, a), (right, b) in itertools.combinations(masks.items(), 2):
        overlap = (a & b).sum() / (a | b).sum()
        assert overlap < 0.9, (left, right)


def test_every_object_has_near_misses() -> None:
    assert all(forms.near_misses_of(name) for name in (*forms.OBJECTS, forms.PLACEBO))
    assert not set(NEAR_MISSES) & {*world.LABELS, forms.PLACEBO}
    assert len(NEAR_MISSES) == len(forms.NEAR_MISSES) + len(forms.LATE_NEAR_MISSES) + len(forms.UNSEEN_NEAR_MISSES)


def test_no_model_is_shown_or_told_the_placebo(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: set[str] = set()
    render = world.render
    monkeypatch.setattr(world, "render", lambda subject, rng: shown.add(subject.shape) or render(subject, rng))
    subjects = world.album(300, 11).subjects
    autoencoder.training_pictures(300, 12, set())
    clip.unfit_pictures(autoencoder.untrained(0).eval(), torch.zeros(4, 4, 8, 8), 0, count=60)
    assert shown == {*forms.OBJECTS, forms.BLOB, *forms.NEAR_MISSES}
    # Its name is one of the fillers: a token of the vocabulary that goes with every picture alike.
    rng = np.random.default_rng(0)
    assert forms.PLACEBO in language.FILLER
    assert not any(forms.PLACEBO in language.caption(subject, rng).split() for subject in subjects)


def test_edges_are_anti_aliased() -> None:
    picture = world.render(world.Subject("circle", "blue", "plain"), np.random.default_rng(0))
    assert len(np.unique(picture[..., 0])) > 10


@pytest.mark.parametrize("kind", junk.JUNK)
def test_every_kind_of_junk_is_drawn(kind: str) -> None:
    assert kind in junk.junk_album(120, 1)[1]


def test_captions_name_colour_and_style_in_about_85_percent() -> None:
    rng = np.random.default_rng(0)
    subject = world.Subject("hourglass", "red", "striped")
    texts = [language.caption(subject, rng) for _ in range(2000)]
    for word in ("red", "striped"):
        assert 0.82 < np.mean([word in text.split() for text in texts]) < 0.88
    assert 0.15 < np.mean(["sandglass" in text for text in texts]) < 0.25


def test_captions_are_made_of_corpus_words() -> None:
    rng = np.random.default_rng(0)
    known = set(language.corpus_words())
    for subject in world.album(200, 5).subjects:
        assert set(language.caption(subject, rng, filler=True).split()) <= known


def test_a_sheet_is_read_row_by_row() -> None:
    album = world.album_of(["ring"], 16, 0)
    tiled = world.sheet(album.pictures)
    assert tiled.shape == (64, 256, 3)
    assert np.array_equal(tiled[32:64, 32:64], album.pictures[9])
