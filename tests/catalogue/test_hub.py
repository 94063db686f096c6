"""Folders of the hub: what is fetched of a pipeline at its revision, and when nothing is."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import yaml

from support.pipeline_parts import CONFIGS, STEMS
from unerase_backend.catalogue import Catalogue, hub

REVISION = "0123456789abcdef" * 2 + "01234567"
PLAIN = [f"{part}/{stem}.safetensors" for part, stem in STEMS.items()]
TEXTS = ["model_index.json", "tokenizer/tokenizer.json", *(f"{part}/{name}" for part, name in CONFIGS.items())]


class Repository:
    """A repository of the hub, of which files are copied by the patterns that the download is given."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.source, self.local = folder / "repository", folder / "local"
        self.asked: list[dict[str, object]] = []
        for name in [*TEXTS, *files]:
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_text("{}" if name.endswith("json") else name)

    def download(self, hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], revision: str) -> str:
        self.asked.append({"hub_id": hub_id, "revision": revision, "allow_patterns": allow_patterns})
        for path in self.source.rglob("*"):
            name = path.relative_to(self.source).as_posix()
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if path.is_file() and wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns):
                (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.local / name)
        return str(self.local)

    def fetched(self) -> set[str]:
        paths = (path for path in self.local.rglob("*") if path.suffix == ".safetensors")
        return {path.relative_to(self.local).as_posix() for path in paths}


def catalogue(folder: Path, **changes: dict[str, object]) -> Catalogue:
    entry = {"hub": "org/name", "revision": REVISION, "resolution": 512}
    (folder / "models.yaml").write_text(
        yaml.safe_dump({"hub_organisations": ["org"], "models": {"hub": entry, **changes}})
    )
    return Catalogue.load(embedded=folder / "models.yaml")


VARIANTS = [f"{part}/{stem}.{kind}.safetensors" for part, stem in STEMS.items() for kind in ("fp16", "bf16", "non_ema")]
STRAY = ["v1-4.safetensors", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin"]


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (PLAIN + VARIANTS + STRAY, PLAIN),
        (VARIANTS + STRAY, [name for name in VARIANTS if ".fp16." in name]),
        ([name for name in VARIANTS if ".bf16." in name], [name for name in VARIANTS if ".bf16." in name]),
        # The UNet alone comes as a variant.
        (PLAIN[1:] + VARIANTS, [*PLAIN[1:], VARIANTS[0]]),
    ],
)
def test_one_set_of_weights_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], fetched: list[str]
) -> None:
    repository = Repository(tmp_path, files)
    monkeypatch.setattr(hub, "snapshot_download", repository.download)
    read = catalogue(tmp_path)
    assert not repository.asked, "loading the catalogue fetched something"
    assert len(read.describe_model("hub").files) == 3
    assert repository.fetched() == set(fetched)
    for asked in repository.asked:
        assert (asked["hub_id"], asked["revision"]) == ("org/name", REVISION)
        assert all(str(pattern).endswith((".json", ".safetensors", ".txt")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shard", ["model.{}-00001-of-00001.safetensors", "model-00001-of-00001.{}.safetensors"])
def test_shards_of_a_variant_come_with_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, shard: str
) -> None:
    """As the large text encoder of a half-precision repository has them."""
    weights, index = f"text_encoder/{shard.format(variant)}", f"text_encoder/model.safetensors.index.{variant}.json"
    others = [name for name in PLAIN if not name.startswith("text_encoder")]
    repository = Repository(tmp_path, [*others, weights])
    (repository.source / index).write_text(json.dumps({"weight_map": {"a": Path(weights).name}}))
    monkeypatch.setattr(hub, "snapshot_download", repository.download)
    described = catalogue(tmp_path).describe_model("hub")
    assert repository.fetched() == {*others, weights}
    assert (repository.local / index).is_file()
    assert len(described.files) == 3


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model.safetensors", "model.fp16.safetensors", "model.bin"), "model.safetensors"),
        (("model.bf16.safetensors", "model.fp16.safetensors", "model.bin"), "model.fp16.safetensors"),
        (("model.bf16.safetensors",), "model.bf16.safetensors"),
    ],
)
def test_what_a_guard_reads_is_fetched_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], taken: str
) -> None:
    checker = ["safety_checker/config.json", "feature_extractor/preprocessor_config.json"]
    weights = [f"safety_checker/{name}" for name in names]
    repository = Repository(tmp_path, [*PLAIN, STRAY[0], STRAY[2], *checker, *weights])
    monkeypatch.setattr(hub, "snapshot_download", repository.download)
    read = catalogue(tmp_path, shop={"base": "hub", "guards": [{"kind": "safety-checker"}]})
    read.describe_model("hub")
    assert not (repository.local / "safety_checker").exists()
    described = read.describe_model("shop")
    assert repository.fetched() == {*PLAIN, f"safety_checker/{taken}"}
    assert all((repository.local / name).is_file() for name in checker)
    assert {file.component for file in described.guards[0].files} == {"safety_checker", "feature_extractor"}
    assert described.weights_digest == read.describe_model("hub").digest


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["model.safetensors", "model.fp16.safetensors"], {"model.safetensors"}),
        (["model.fp16.safetensors", "pytorch_model.bin"], {"model.fp16.safetensors"}),
    ],
)
def test_a_judge_whose_only_weights_are_a_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], fetched: set[str]
) -> None:
    repository = Repository(tmp_path, files)
    monkeypatch.setattr(hub, "snapshot_download", repository.download)
    assert hub.judge_folder("org/name", REVISION) == repository.local
    assert repository.fetched() == fetched
