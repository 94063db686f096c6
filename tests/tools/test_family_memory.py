"""The page of published models: its catalogue can be read, and its tables are what the tool prints."""

from pathlib import Path

import pytest
import yaml

from tools.family_memory import memory_rows, settings_rows, size_of
from tools.published_models import PUBLISHED
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_families import FAMILIES
from unerase_backend.diffusion.memory import ModelSize

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sizes() -> dict[str, ModelSize]:
    return {model.title: size_of(model) for model in PUBLISHED}


def test_catalogue(tmp_path: Path) -> None:
    block = PAGE.partition("# published-models.yaml\n")[2].partition("```")[0]
    file = tmp_path / "models.yaml"
    file.write_text(block.replace("REVISION", "a" * 40))
    models = [
        each for name, each in Catalogue.load([str(file)]).models.items() if name in yaml.safe_load(block)["models"]
    ]
    for entry, model in zip(models, PUBLISHED, strict=True):
        assert (entry.hub, entry.resolution) == (model.hub, model.resolution)
        assert (entry.max_sequence_length or 0) == model.sequence_length
    assert {model.family for model in PUBLISHED} == {family.name for family in FAMILIES}


def test_tables(sizes: dict[str, ModelSize]) -> None:
    for table in (memory_rows, settings_rows):
        assert "\n".join(table(sizes)) in PAGE


def test_parameters_are_those_that_were_published(sizes: dict[str, ModelSize]) -> None:
    """By the sizes of the published files, in bytes of the number type of each."""
    assert sizes["Stable Diffusion 1.4"].denoiser_parameters == 859_520_964
    assert sizes["Stable Diffusion XL base 1.0"].denoiser_parameters == 2_567_463_684
    assert sizes["Stable Diffusion 3 medium"].denoiser_parameters == 2_084_951_104
    assert sizes["Stable Diffusion 3.5 medium"].denoiser_parameters * 2 == pytest.approx(4.94e9, rel=0.001)
    assert sizes["FLUX.1 dev"].denoiser_parameters == pytest.approx(11.9e9, rel=0.001)
    assert sizes["Sana 1.6B"].denoiser_parameters == pytest.approx(1.604e9, rel=0.03)
    assert sizes["FLUX.1 dev"].text_parameters == (123_060_480, 4_762_310_656)
