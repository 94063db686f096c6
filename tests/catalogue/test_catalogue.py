"""The catalogue: strict files, paths that stay inside, digests that tell, targets from label tables."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from support.pipeline_parts import CONFIGS, STEMS
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.digests import combined_digest, judge_files
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError, NotFoundError, PreconditionError, UnsafeModelError
from unerase_backend.runtime.pictures import decode_picture

REVISION = "0123456789abcdef" * 2 + "01234567"
Write = Callable[..., Path]


def content() -> dict:
    return {
        "models": {
            "base": {"pipeline": "base", "guidance_scale": 3.0, "steps": 20, "resolution": 16},
            "never": {"base": "base", "unet": "never.safetensors", "never_learned": ["tench"]},
            "edited": {"base": "never", "text_encoder": "edited.safetensors", "steps": 30, "method": "UCE"},
        },
        "judges": {
            "clip": {"kind": "clip", "path": "judge"},
            "one": {"kind": "classifier", "path": "judge"},
            "two": {"kind": "classifier", "path": "judge"},
        },
        "concepts": {
            "tench": {
                "kind": "object",
                "names": ["tench", "doctor fish"],
                "prompts": ["a picture of a {concept}"],
                "labels": {"clip": ["a tench"], "one": ["tench, Tinca tinca"], "two": ["fish", "tench"]},
                "pictures": "tench.png",
                "control": "never",
            },
            "church": {"kind": "object", "names": ["church"], "labels": {"clip": ["a church", "a tench"]}},
            "red": {"kind": "colour", "names": ["red"], "labels": {"clip": ["a red thing"]}},
        },
    }


def weights_of(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a folder with weights of one byte, and the catalogue file; returns the file's path."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / "base" / part).mkdir(parents=True)
        (tmp_path / "base" / part / CONFIGS.get(part, "tokenizer.json")).write_text("{}")
    for part in STEMS:
        weights_of(tmp_path / "base", part).write_bytes(part.encode())
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"judge")
    for name in ("never", "edited"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    pixels = np.arange(32 * 48 * 3, dtype=np.uint32).reshape(32, 48, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "tench.png")

    def file(value: object, name: str = "models.yaml") -> Path:
        text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return file


@pytest.fixture
def catalogue(write: Write) -> Catalogue:
    return Catalogue.load(embedded=write(content()))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def refused(path: Path) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequestError) as caught:
        Catalogue.load(embedded=path)
    assert str(path.parent) not in caught.value.message
    return [(violation.field, violation.description) for violation in caught.value.violations]


def test_figures_come_from_the_base(catalogue: Catalogue) -> None:
    figures = [(e.guidance_scale, e.steps, e.resolution) for e in catalogue.models.values()]
    assert figures == [(3.0, 20, 16), (3.0, 20, 16), (3.0, 30, 16)]


def test_a_chain_is_loaded_in_order(catalogue: Catalogue, tmp_path: Path) -> None:
    parts = catalogue.model_parts("edited")
    assert parts.folder == tmp_path / "base"
    assert parts.changes["unet"] == (tmp_path / "never.safetensors",)
    assert parts.changes["text_encoder"] == (tmp_path / "edited.safetensors",)


def test_unknown_names(catalogue: Catalogue, store: ArtifactStore) -> None:
    for look, kind in ((catalogue.model, "MODEL"), (catalogue.judge, "JUDGE"), (catalogue.concept, "CONCEPT")):
        with pytest.raises(NotFoundError) as caught:
            look("nothing")
        assert caught.value.reason == f"{kind}_NOT_FOUND"
    with pytest.raises(NotFoundError):
        catalogue.describe_model("nothing")
    with pytest.raises(NotFoundError):
        catalogue.concept_message("nothing", store)


def test_a_description_has_every_weight_file_with_its_digest(catalogue: Catalogue) -> None:
    described = catalogue.describe_model("edited")
    assert described.base == "never"
    assert described.method == "UCE"
    expected = [("text_encoder", b"text_encoder"), ("unet", b"unet"), ("vae", b"vae")]
    expected += [("unet", b"never"), ("text_encoder", b"edited")]
    assert sorted((file.component, file.digest, file.size_bytes) for file in described.files) == sorted(
        (part, hashlib.sha256(weights).hexdigest(), len(weights)) for part, weights in expected
    )


def test_a_digest_changes_with_everything_the_model_is_made_of(write: Write, tmp_path: Path) -> None:
    def digest(name: str = "edited") -> str:
        return Catalogue.load(embedded=write(content())).describe_model(name).digest

    seen = [digest(), digest("never"), digest("base")]
    assert digest() == seen[0]
    for file in (
        "edited.safetensors",
        "never.safetensors",
        "base/vae/config.json",
        "base/scheduler/scheduler_config.json",
    ):
        (tmp_path / file).write_bytes(b'{"changed": 1}')
        seen.append(digest())
    assert len(set(seen)) == len(seen)


def test_figures_and_names_do_not_change_a_digest(write: Write) -> None:
    renamed = content()
    renamed["models"]["other"] = renamed["models"]["edited"] | {"steps": 7}
    read = Catalogue.load(embedded=write(renamed))
    assert read.describe_model("other").digest == read.describe_model("edited").digest


def test_pickled_weights_are_refused(write: Write, tmp_path: Path) -> None:
    weights = weights_of(tmp_path / "base", "vae")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsafeModelError) as caught:
        Catalogue.load(embedded=write(content())).describe_model("never")
    assert caught.value.reason == "WEIGHTS_NOT_SAFETENSORS"
    (tmp_path / "judge" / "model.safetensors").rename(tmp_path / "judge" / "model.pt")
    with pytest.raises(UnsafeModelError):
        Catalogue.load(embedded=write(content())).judge_digest("one")


def test_links_out_of_the_folder_are_refused(
    write: Write, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    outside.write_bytes(b"secret")
    weights = weights_of(tmp_path / "base", "unet")
    weights.unlink()
    weights.symlink_to(outside)
    with pytest.raises(UnsafeModelError) as caught:
        Catalogue.load(embedded=write(content())).describe_model("base")
    assert caught.value.reason == "PATH_ESCAPES"
    (tmp_path / "never.safetensors").unlink()
    (tmp_path / "never.safetensors").symlink_to(outside)
    ((field, description),) = refused(write(content()))
    assert field == "models.yaml: models.never.unet"
    assert "link" in description


@pytest.mark.parametrize(
    ("section", "name", "change", "field"),
    [
        ("models", "base", {"pipeline": "../base"}, "pipeline"),
        ("models", "base", {"pipeline": "/etc"}, "pipeline"),
        ("models", "base", {"pipeline": "nowhere"}, "pipeline"),
        ("models", "base", {"pipeline": "tench.png"}, "pipeline"),
        ("models", "never", {"unet": "tench.png"}, "unet"),
        ("models", "never", {"unet": ["never.safetensors"]}, "unet"),
        ("models", "base", {"steps": "20"}, "steps"),
        ("models", "base", {"steps": 0}, "steps"),
        ("models", "base", {"guidance_scale": 0.5}, "guidance_scale"),
        ("models", "base", {"guidance_scale": float("nan")}, "guidance_scale"),
        ("models", "base", {"guidance": 3.0}, "guidance"),
        ("models", "base", {"base": "never"}, ""),
        ("models", "base", {"resolution": 0}, "resolution"),
        ("models", "never", {"base": "nothing"}, "base"),
        ("models", "never", {"base": "edited"}, "base"),
        ("models", "never", {"resolution": 16}, "resolution"),
        ("models", "never", {"never_learned": "tench"}, "never_learned"),
        ("models", "never", {"erased": ["tench"]}, ""),
        ("judges", "one", {"path": "../judge"}, "path"),
        ("judges", "one", {"hub": "org/name"}, "hub"),
        ("concepts", "tench", {"kind": "animal"}, "kind"),
        ("concepts", "tench", {"names": []}, "names"),
        ("concepts", "tench", {"prompts": ["{concept} or {concept}"]}, "prompts.0"),
        ("concepts", "tench", {"prompts": ["{concept} {0}"]}, "prompts.0"),
        ("concepts", "tench", {"pictures": "never.safetensors"}, "pictures"),
        ("concepts", "tench", {"tile": 13}, "pictures"),
        ("concepts", "tench", {"labels": {"three": ["tench"]}}, "labels.three"),
        ("concepts", "tench", {"control": "nothing"}, "control"),
        ("concepts", "tench", {"control": "base"}, "control"),
    ],
)
def test_a_bad_field_is_named(write: Write, section: str, name: str, change: dict, field: str) -> None:
    changed = content()
    changed[section][name] |= change
    fields = [found for found, _ in refused(write(changed))]
    assert f"models.yaml: {section}.{name}" + (f".{field}" if field else "") in fields


@pytest.mark.parametrize(
    "text",
    [
        "models: [",
        "- models",
        "models: {a: {base: b}}\nmodels: {}",
        "models: !!python/object/apply:os.system [true]",
        "pipelines: {}",
        "models: {'../a': {base: b}}",
    ],
)
def test_a_bad_file_is_refused(write: Write, text: str) -> None:
    assert all(field.startswith("models.yaml") for field, _ in refused(write(text)))


def test_a_path_that_is_too_long_is_named(write: Write) -> None:
    changed = content()
    changed["models"]["base"]["pipeline"] = "a" * 5000
    assert ("models.yaml: models.base.pipeline", "cannot be read: File name too long") in refused(write(changed))


def test_a_chain_of_bases_has_an_end(write: Write) -> None:
    changed = content()
    changed["models"] |= {f"c{i}": {"base": f"c{i + 1}" if i < 1999 else "base"} for i in range(2000)}
    found = dict(refused(write(changed)))
    assert found["models.yaml: models.c0.base"] == "leads over more than 50 models"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        Catalogue.load([str(tmp_path / "nothing.yaml")])


def test_files_add_up_and_a_name_stands_once(write: Write) -> None:
    first = write(content())
    more = write({"models": {"more": {"base": "base", "unet": "edited.safetensors"}}}, "more.yaml")
    assert list(Catalogue.load([str(more)], embedded=first).models)[-1] == "more"
    again = write({"models": {"base": {"pipeline": "base", "resolution": 16}}}, "again.yaml")
    with pytest.raises(InvalidRequestError) as caught:
        Catalogue.load([str(again)], embedded=first)
    assert [violation.field for violation in caught.value.violations] == ["again.yaml: models.base"]


@pytest.mark.parametrize(
    ("organisations", "entry", "field"),
    [
        (["org"], {"hub": "other/name", "revision": REVISION}, ".hub"),
        ([], {"hub": "org/name", "revision": REVISION}, ".hub"),
        (["org"], {"hub": "org/../name", "revision": REVISION}, ".hub"),
        (["org"], {"hub": "org/name", "revision": "main"}, ".revision"),
        (["org"], {"hub": "org/name"}, ""),
    ],
)
def test_a_hub_id_is_of_an_allowed_organisation_and_pinned(
    write: Write, organisations: list[str], entry: dict, field: str
) -> None:
    path = write({"hub_organisations": organisations, "models": {"hub": entry | {"resolution": 512}}})
    assert f"models.yaml: models.hub{field}" in [found for found, _ in refused(path)]


def test_pictures_are_cut_out_of_their_sheet(catalogue: Catalogue, store: ArtifactStore, tmp_path: Path) -> None:
    concept = catalogue.concept_message("tench", store)
    pixels = np.asarray(Image.open(tmp_path / "tench.png"))
    tiles = [decode_picture(store.get(digest)) for digest in concept.picture_digests]
    assert len(tiles) == 6
    assert np.array_equal(np.concatenate([np.concatenate(tiles[i : i + 3], axis=1) for i in (0, 3)]), pixels)
    assert not concept.near_miss_digests
    assert catalogue.concept_message("tench", store) == concept
    assert list(catalogue.concept_message("church", store).prompts) == ["a picture of a {concept}"]


def test_a_target_asks_each_judge_by_its_table(catalogue: Catalogue, store: ArtifactStore) -> None:
    assert catalogue.default_judges() == ("clip", "one", "two")
    target = catalogue.target("tench", store, "clip", "one", "two")
    assert list(target.selector.labels) == ["a tench"]
    # Those of the same kind, without what also means the concept.
    assert list(target.selector.alternatives) == ["a church"]
    assert list(target.judge.labels) == ["tench, Tinca tinca"]
    assert list(target.second_judge.labels) == ["fish", "tench"]
    assert not target.judge.alternatives
    with pytest.raises(PreconditionError) as caught:
        catalogue.target("church", store, "clip", "one", "two")
    assert caught.value.reason == "LABELS_MISSING"
    with pytest.raises(NotFoundError):
        catalogue.target("tench", store, "clip", "one", "three")


def test_a_concept_without_a_control_gets_a_model_that_never_learned_it(write: Write) -> None:
    first = content()
    first["models"]["never"]["never_learned"] = ["tench", "church"]
    first["concepts"]["red"]["names"] = ["red", "scarlet"]
    blank = {"base": "base", "unet": "edited.safetensors", "never_learned": ["scarlet", "church"]}
    later = write({"models": {"blank": blank}}, "later.yaml")
    read = Catalogue.load([str(later)], embedded=write(first))
    controls = {name: entry.control for name, entry in read.concepts.items()}
    # Named by the concept's name or by one of its words, as a control that the entry names itself.
    assert controls == {"tench": "never", "church": "never", "red": "blank"}
    assert Catalogue.load(embedded=write(content())).concept("church").control is None


@pytest.mark.parametrize("change", [{}, {"text_encoder": "edited.safetensors"}])
def test_what_has_its_bases_unet_never_learned_no_more_than_its_base(write: Write, change: dict[str, str]) -> None:
    claimed = content()
    claimed["models"]["blank"] = {"base": "base", "never_learned": ["tench", "church"], **change}
    with pytest.raises(InvalidRequestError) as caught:
        Catalogue.load(embedded=write(claimed))
    (violation,) = caught.value.violations
    assert violation.field == "models.yaml: models.blank.never_learned"
    assert "'church', but the denoiser is the base's" in violation.description
    claimed["models"]["blank"] |= {"base": "never", "never_learned": ["tench"]}
    assert Catalogue.load(embedded=write(claimed)).model("blank").never_learned == ("tench",)


def test_a_placebo_is_nothing_that_a_model_erased(write: Write) -> None:
    claimed = content()
    claimed["models"]["edited"]["erased"] = ["church"]
    assert Catalogue.load(embedded=write(claimed)).model("edited").erased == ("church",)
    claimed["concepts"]["church"]["placebo"] = True
    with pytest.raises(InvalidRequestError) as caught:
        Catalogue.load(embedded=write(claimed))
    assert [violation.field for violation in caught.value.violations] == ["models.yaml: concepts.church.placebo"]


def test_judges_are_one_by_their_weights_alone(write: Write, tmp_path: Path) -> None:
    changed = content()
    for name, weights in (("two", b"judge"), ("clip", b"other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_text("{}")
        changed["judges"][name]["path"] = name
    read = Catalogue.load(embedded=write(changed))
    assert read.judge_weights("two") == read.judge_weights("one") != read.judge_weights("clip")
    assert read.judge_digest("two") != read.judge_digest("one")


def test_a_placebo_is_no_alternative_of_the_selector(write: Write, store: ArtifactStore) -> None:
    changed = content()
    changed["concepts"]["yeti"] = changed["concepts"]["church"] | {"names": ["yeti"], "labels": {"clip": ["a yeti"]}}

    def alternatives(concept: str) -> list[str]:
        return list(Catalogue.load(embedded=write(changed)).question(concept, "clip").alternatives)

    assert alternatives("tench") == ["a church", "a yeti"]
    changed["concepts"]["yeti"]["placebo"] = True
    assert alternatives("tench") == ["a church"]
    assert alternatives("yeti") == ["a tench", "a church"]


def test_default_judges_must_be_there(write: Write) -> None:
    fewer = content()
    del fewer["judges"]["two"], fewer["concepts"]["tench"]["labels"]["two"]
    with pytest.raises(PreconditionError):
        Catalogue.load(embedded=write(fewer)).default_judges()


def test_the_embedded_catalogue_holds_together(store: ArtifactStore) -> None:
    catalogue = Catalogue.load()
    judges = catalogue.default_judges()
    for name in catalogue.models:
        assert catalogue.describe_model(name).files
    for name in catalogue.concepts:
        assert catalogue.target(name, store, *judges).concept.picture_digests
    assert len({catalogue.judge_digest(name) for name in judges}) == 3


def test_every_file_of_a_judge_counts(tmp_path: Path) -> None:
    """A third party's judge may read files of any kind, in folders of its own."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digests = {combined_digest(judge_files(tmp_path, tmp_path))}
    for name in ("table.npy", "prompts.jinja", "more/settings.yaml", "more/deep/settings.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
        digests.add(combined_digest(judge_files(tmp_path, tmp_path)))
    assert len(digests) == 5
    (tmp_path / ".cached").write_bytes(b"content")
    assert combined_digest(judge_files(tmp_path, tmp_path)) in digests
    (tmp_path / "more" / "out").symlink_to(Path(__file__))
    with pytest.raises(UnsafeModelError):
        judge_files(tmp_path, tmp_path)
