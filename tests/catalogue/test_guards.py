"""Guards in a catalogue file: what is refused, with its key and reason, and what is part of a model's digest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.runtime.errors import InvalidRequestError

BASE = "testbed/reference"


def load(folder: Path, models: dict[str, Any]) -> Catalogue:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({"models": models}))
    return Catalogue.load([str(file)])


@pytest.mark.parametrize(
    ("guards", "said"),
    [
        ("negative-prompt", "must be a list"),
        ([3], "[0]: must be a mapping with its kind"),
        ([{"text": "x"}], "[0]: must be a mapping with its kind"),
        ([{"kind": "negative-promt", "text": "x"}], "[0].kind: there is no guard 'negative-promt', but"),
        ([{"kind": "negative-prompt"}], "[0].text of negative-prompt: must be given"),
        ([{"kind": "negative-prompt", "text": 3}], "[0].text of negative-prompt: Input should be a valid string"),
        (
            [{"kind": "negative-prompt", "text": "x", "weight": 2}],
            "[0].weight of negative-prompt: there is no such key; the keys",
        ),
        ([{"kind": "prompt-filter"}], "[0] of prompt-filter: must name words or expressions"),
        ([{"kind": "prompt-filter", "expressions": ["("]}], "is no regular expression"),
        ([{"kind": "prompt-filter", "expressions": ["x*"]}], "matches the empty text, and so every prompt"),
        ([{"kind": "judge-checker", "judge": "j", "labels": ["x"], "threshold": 0.0}], "threshold of judge-checker"),
        ([{"kind": "safe-latent-diffusion", "text": "x", "momentum_beta": 1.0}], "momentum_beta"),
        ([{"kind": "safree", "concepts": []}], "[0].concepts of safree"),
        ([{"kind": "judge-checker", "judge": "j", "labels": ["x"], "threshold": 2.0}], "threshold of judge-checker"),
        (
            [{"kind": "steering", "module": "m", "direction": "n.safetensors"}],
            "direction of steering: does not exist",
        ),
        ([{"kind": "steering", "module": "m", "direction": "../x.safetensors"}], "must stay inside"),
        ([{"kind": "safety-checker", "folder": "/etc"}], "folder of safety-checker: must stay inside"),
        ([{"kind": "safree", "concepts": ["a"]}] * 2, "may have one guard of the kind safree"),
        ([{"kind": "negative-prompt", "text": "x"}] * 17, "at most 16 guards"),
    ],
)
def test_a_bad_guard_is_refused_by_its_key(tmp_path: Path, guards: object, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        load(tmp_path, {"own/shop": {"base": BASE, "guards": guards}})
    (violation,) = refused.value.violations
    assert violation.field == "own.yaml: models.own/shop.guards"
    assert said in violation.description


def test_a_second_guard_of_a_single_kind_is_refused_down_the_chain(tmp_path: Path) -> None:
    negative = [{"kind": "negative-prompt", "text": "x"}]
    models = {"own/shop": {"base": BASE, "guards": negative}, "own/again": {"base": "own/shop", "guards": negative}}
    with pytest.raises(InvalidRequestError, match="its base's included"):
        load(tmp_path, models)


def test_guards_are_inherited_and_act_after_those_of_the_base(tmp_path: Path) -> None:
    first, second = {"kind": "prompt-filter", "words": ["x"]}, {"kind": "negative-prompt", "text": "y"}
    models = {"own/shop": {"base": BASE, "guards": [first]}, "own/again": {"base": "own/shop", "guards": [second]}}
    catalogue = load(tmp_path, models | {"own/plain": {"base": "own/shop"}})
    assert [guard.kind for guard in catalogue.guards("own/again")] == ["prompt-filter", "negative-prompt"]
    assert [guard.kind for guard in catalogue.describe_model("own/plain").guards] == ["prompt-filter"]
    assert catalogue.guards(BASE) == ()


def test_the_digest_covers_every_parameter_and_the_weights_keep_theirs(tmp_path: Path) -> None:
    def digests(**parameters: Any) -> tuple[str, str]:
        guard = {"kind": "safe-latent-diffusion", "text": "hourglass", **parameters}
        model = load(tmp_path, {"own/shop": {"base": BASE, "guards": [guard]}}).describe_model("own/shop")
        return model.digest, model.weights_digest

    plain = load(tmp_path, {"own/shop": {"base": BASE}}).describe_model(BASE)
    assert (plain.weights_digest, len(plain.guards)) == ("", 0)
    first, again, other = digests(), digests(), digests(threshold=0.02)
    assert first == again
    assert first[0] != other[0]
    assert first[1] == other[1] == plain.digest
    # What is a default is the same whether it is written or not.
    assert digests(threshold=0.01) == first


CONCEPTS = ("concept_embeds", "special_care_embeds")
CHECKER = {f"{name}{end}": np.zeros(2, np.float32) for name in CONCEPTS for end in ("", "_weights")}
CHECKER["visual_projection.weight"] = np.zeros((2, 2), np.float32)
STEERING = {"kind": "steering", "module": "mid_block", "direction": "own.safetensors"}
OWN_CHECKER = {"kind": "safety-checker", "folder": "checker", "feature_extractor": "checker"}


def guarded(folder: Path, guard: dict[str, Any], direction: dict[str, Any], checker: dict[str, Any]) -> Catalogue:
    (folder / "checker").mkdir(exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / "checker" / name).write_text("{}")
    save_file(direction, folder / "own.safetensors")
    save_file(checker, folder / "checker" / "model.safetensors")
    return load(folder, {"own/shop": {"base": BASE, "guards": [guard]}})


@pytest.mark.parametrize("guard", [STEERING, OWN_CHECKER])
def test_sound_files_of_a_guard_pass_the_check(tmp_path: Path, guard: dict[str, Any]) -> None:
    read = guarded(tmp_path, guard, {"direction": np.ones(64, np.float32)}, CHECKER)
    assert not check_model(read, "own/shop").problems


@pytest.mark.parametrize(
    ("guard", "direction", "checker", "reason", "said"),
    [
        (STEERING, {"other": np.ones(3)}, CHECKER, "WEIGHTS_INCOMPLETE", "own.safetensors has no tensor 'direction'"),
        (STEERING, {"direction": np.ones((3, 3))}, CHECKER, "WEIGHTS_WRONG_SHAPE", "must be a finite vector"),
        (OWN_CHECKER, {}, {"concept_embeds": np.ones(2)}, "WEIGHTS_INCOMPLETE", "lack 4 tensors, concept_embeds_weig"),
    ],
)
def test_a_check_reads_the_headers_of_a_guards_files(
    tmp_path: Path, guard: dict[str, Any], direction: dict[str, Any], checker: dict[str, Any], reason: str, said: str
) -> None:
    [problem] = check_model(guarded(tmp_path, guard, direction, checker), "own/shop").problems
    assert (problem.part, problem.reason) == ("guard", reason)
    assert problem.text.startswith(f"the guard {guard['kind']}: ")
    assert said in problem.text


@pytest.mark.parametrize(
    ("guard", "file", "reason"),
    [
        (STEERING, "own.safetensors", "WEIGHTS_UNREADABLE"),
        (OWN_CHECKER, "checker/model.safetensors", "WEIGHTS_UNREADABLE"),
        (OWN_CHECKER, "checker/config.json", "MODEL_INCOMPLETE"),
        (OWN_CHECKER, "checker/preprocessor_config.json", "MODEL_INCOMPLETE"),
        ({"kind": "safety-checker"}, "checker/config.json", "MODEL_INCOMPLETE"),
    ],
)
def test_a_check_names_a_damaged_file_of_a_guard(tmp_path: Path, guard: dict[str, Any], file: str, reason: str) -> None:
    read = guarded(tmp_path, guard, {"direction": np.ones(64)}, CHECKER)
    (tmp_path / file).write_bytes(b"{")
    [problem] = check_model(read, "own/shop").problems
    assert (problem.part, problem.reason) == ("guard", reason)
    # The last guard's files are the pipeline's own, which has none.
    assert Path(file).name in problem.text or guard == {"kind": "safety-checker"}
