"""Two steps of every training: it runs, it moves the weights, and the same seed moves them alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from unerase_backend.catalogue import Catalogue
from unerase_backend.testbed import (
    autoencoder,
    catalogue,
    clip,
    forms,
    judges,
    parts,
    recipe,
    schedule,
    storage,
    train,
    unet,
    world,
)
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.flow import parts as flow_parts
from unerase_backend.testbed.flow import transformer
from unerase_backend.testbed.flow.recipe import SECOND_TEXT_LAYERS, SECOND_TEXT_WIDTH
from unerase_backend.testbed.train import WEIGHTS

ALBUM = world.album(48, 0)
TOKENIZER = bpe.build()


def silent(_: str) -> None:
    pass


def _unet() -> nn.Module:
    tower = clip.text_tower(clip.untrained(TOKENIZER, 0))
    latents = torch.randn((48, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return unet.train(latents, ALBUM.subjects, tower, TOKENIZER, 0, 2, silent)


def _transformer() -> nn.Module:
    models = (clip.untrained(TOKENIZER, 0), clip.untrained(TOKENIZER, 1, SECOND_TEXT_WIDTH, SECOND_TEXT_LAYERS))
    latents = torch.randn((48, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    encoders = [clip.text_encoder(model) for model in models]
    return transformer.train(latents, ALBUM.subjects, encoders, TOKENIZER, 0, 2, silent)


def _judge(name: str) -> nn.Module:
    rng = np.random.default_rng(0)
    groups = {
        group: (rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8), judges.no_object(6)) for group in judges.SHARES
    }
    groups["real"] = (ALBUM.pictures, judges.targets_of(ALBUM.subjects))
    model: nn.Module = judges.train(judges.KINDS[name], groups, 0, 2, silent)
    return model


TRAININGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "autoencoder": (
        lambda: autoencoder.untrained(0),
        lambda: autoencoder.train(ALBUM.pictures, 0, 2, silent),
    ),
    "clip": (
        lambda: clip.untrained(TOKENIZER, 0),
        lambda: clip.train(ALBUM, ALBUM.pictures[::-1], TOKENIZER, 0, 2, silent),
    ),
    "second-clip": (
        lambda: clip.untrained(TOKENIZER, 0, SECOND_TEXT_WIDTH, SECOND_TEXT_LAYERS),
        lambda: clip.train(ALBUM, ALBUM.pictures[::-1], TOKENIZER, 0, 2, silent, SECOND_TEXT_WIDTH, SECOND_TEXT_LAYERS),
    ),
    "unet": (lambda: unet.untrained(0), _unet),
    "transformer": (lambda: transformer.untrained(0), _transformer),
    "judge": (judges.KINDS["judge"].build, lambda: _judge("judge")),
    "second-judge": (judges.KINDS["second-judge"].build, lambda: _judge("second-judge")),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_two_steps_train_alike_twice(name: str) -> None:
    untrained, trained = TRAININGS[name]
    before, first, second = untrained().state_dict(), trained().state_dict(), trained().state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in first.values())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], before[key]) for key in first)


def test_the_autoencoders_latents_have_unit_spread() -> None:
    vae = autoencoder.train(ALBUM.pictures, 0, 2, silent)
    assert autoencoder.encode(vae, ALBUM.pictures).std().item() == pytest.approx(1, abs=1e-3)


def test_the_judges_training_set_is_complete() -> None:
    groups = judges.training_set(autoencoder.untrained(0).eval(), 0, scale=0.004)
    assert set(groups) == set(judges.SHARES)
    for name, (pictures, targets) in groups.items():
        assert len(pictures) == len(targets) > 0, name
        shown = targets[:, [judges.LABELS.index(label) for label in judges.SHOWN]]
        assert not np.isnan(shown).any()
        if name in ("real", "decoded", "noisy"):
            assert shown[:, -1].any(), name
        else:
            assert shown.sum() == 0, name


def test_what_fits_no_caption_nearly_shows_nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[str] = set()
    render = world.render
    monkeypatch.setattr(world, "render", lambda subject, rng: shapes.add(subject.shape) or render(subject, rng))
    unfit = clip.unfit_pictures(autoencoder.untrained(0).eval(), torch.zeros(4, 4, 8, 8), 0, {"hourglass"}, count=60)
    assert unfit.shape[1:] == (32, 32, 3)
    assert 120 < len(unfit) < 180
    near = {name for name in shapes if name in forms.NEAR_MISSES}
    assert near == set(forms.NEAR_MISSES) - set(forms.near_misses_of("hourglass"))


def test_noise_is_added_as_published() -> None:
    alphas = unet.scheduler().alphas_cumprod
    draws = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 5, 4, 8, 8), generator=draws)
    timesteps = torch.tensor([0, 10, 500, 998, 999])
    assert torch.allclose(
        unet.add_noise(latents, noise, timesteps, alphas),
        unet.scheduler().add_noise(latents, noise, timesteps),
        atol=1e-6,
    )


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule_ = schedule.warm_cosine(optimizer, 4, 10)
    rates = []
    for _ in range(10):
        rates.append(schedule_.get_last_lr()[0])
        optimizer.step()
        schedule_.step()
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert schedule_.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_parts_form_an_acyclic_graph() -> None:
    done: set[str] = set()
    waiting = dict(parts.PARTS)
    while waiting:
        ready = [name for name, part in waiting.items() if set(part.needs) <= done]
        assert ready, waiting
        done |= set(ready)
        waiting = {name: part for name, part in waiting.items() if name not in ready}


def test_every_family_has_every_part_under_its_own_name() -> None:
    shipped, *further = recipe.FAMILIES
    of_shipped = [
        name for name, part in parts.PARTS.items() if part.concept == shipped.concept and name not in flow_parts.PARTS
    ]
    for family in further:
        names = {name for name, part in parts.PARTS.items() if part.concept == family.concept}
        assert names == {f"{family.concept}/{name}" for name in of_shipped if name != "rates-reference"}
        needed = {need for name in names for need in parts.PARTS[name].needs}
        assert {need for need in needed if parts.PARTS[need].concept} <= names


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["--concepts", "blob"], "no family of blob; there are hourglass, heart, arrow"),
        (["--parts", "clip", "lattents"], "no part lattents; there are vae, latents"),
        (["--parts", "heart/clip-never"], "heart/clip-never needs latents.pt in {}: name the part latents as well"),
        (["--parts", "vae", "judge"], "judge needs judge-set.npz in {}: name the part judge-set as well"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    wanted: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--work", str(tmp_path), *wanted])
    with pytest.raises(SystemExit):
        train.main()
    assert said.format(tmp_path) in capsys.readouterr().err


def test_a_familys_catalogue_stands_beside_the_embedded_one(tmp_path: Path) -> None:
    folder = tmp_path / "families" / "heart"
    storage.save_tensors({"x": torch.zeros(1)}, folder / "never" / storage.UNET)
    storage.save_tensors({"x": torch.zeros(1)}, folder / "never" / storage.TEXT_ENCODER)
    storage.save_tensors({"x": torch.zeros(1)}, folder / "uce" / storage.UNET)
    catalogue.write_family(folder, "heart")
    read = Catalogue.load([str(folder / "catalogue.yaml")])
    assert read.concept("heart").control == "testbed/heart/never"
    assert read.model("testbed/heart/uce").erased == ("heart",)
    found = read.model_parts("testbed/heart/uce")
    assert found.folder == WEIGHTS / "reference"
    assert found.changes["unet"] == (folder / "uce" / storage.UNET,)
    assert read.concept("hourglass").control == "testbed/never"


def test_models_that_are_not_shipped_stand_beside_the_embedded_catalogue(tmp_path: Path) -> None:
    for name in ("uce", "salun"):
        storage.save_tensors({"x": torch.zeros(1)}, tmp_path / name / storage.UNET)
    catalogue.write(tmp_path, "hourglass")
    assert list(yaml.safe_load((tmp_path / "catalogue.yaml").read_text())["models"]) == [
        "testbed/reference",
        "testbed/uce",
    ]
    read = Catalogue.load([str(tmp_path / "not-shipped.yaml")])
    assert read.model("testbed/salun").erased == ("hourglass",)
    found = read.model_parts("testbed/salun")
    assert found.folder == WEIGHTS / "reference"
    assert found.changes["unet"] == (tmp_path / "salun" / storage.UNET,)


def test_a_manifest_keeps_what_it_said_of_parts_that_were_not_made_anew(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    storage.save_tensors({"x": torch.zeros(1)}, out / "families" / "heart" / "uce" / storage.UNET)
    (work / "heart").mkdir(parents=True)
    told = {"minutes": 2.0, "cpu_minutes": 1.0, "tensors": 8}
    (work / "heart" / "uce.json").write_text(json.dumps(told))
    parts.PARTS["heart/manifest"].make(out, work)
    (work / "heart" / "uce.json").unlink()
    (work / "heart" / "ga.json").write_text(json.dumps(told))
    parts.PARTS["heart/manifest"].make(out, work)
    manifest = json.loads((out / "families" / "heart" / "manifest.json").read_text())
    assert manifest["concept"] == "heart"
    assert manifest["minutes"] == {"uce": 2.0, "ga": 2.0}
    assert manifest["figures"] == {"uce": {"tensors": 8}, "ga": {"tensors": 8}}
    assert list(manifest["sha256"]) == ["uce/unet.safetensors"]


def test_the_concept_is_left_out_of_the_autoencoders_pictures() -> None:
    with_it = autoencoder.training_pictures(64, 0, set())
    without = autoencoder.training_pictures(64, 0, {recipe.CONCEPT})
    assert len(without) < len(with_it)
