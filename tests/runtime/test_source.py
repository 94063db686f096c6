"""Digests of the source: every file that computes counts, what only serves does not, and all machines agree."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grimp
import pytest

import unerase_backend
from unerase_backend.runtime import source

BACKEND = Path(unerase_backend.__file__).parent
ENGINES = [f"unerase_backend.{room}.engine" for room in ("generation", "classification", "probing", "attack")]
COMPONENTS = [f"unerase_backend.{package}" for package in ("probing.probes", "attack.attacks", "classification.judges")]
GROUP = "unerase.test"
OWN_GROUPS = source._GROUPS

Install = Callable[..., Path]


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    """A copy of the backend's package, less the weights."""
    return Path(shutil.copytree(BACKEND, tmp_path / "copy", ignore=shutil.ignore_patterns("weights", "__pycache__")))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a third party's distribution on the path: files by name, and the module of its entry point."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(source, "_GROUPS", (GROUP,))

    def put(files: dict[str, str], module: str, version: str = "1.0") -> Path:
        for name, content in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(content)
        info = site / "third_party.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-party\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nthing = {module}\n")
        source.registered_digest.cache_clear()
        return site

    yield put
    source.registered_digest.cache_clear()


def digests(backend: Path) -> tuple[str, str]:
    return source.rooms_digest(source.PICTURE_ROOMS, backend), source.rooms_digest(source.RESULT_ROOMS, backend)


def test_the_place_of_the_package_does_not_matter(backend: Path) -> None:
    assert digests(backend) == (source.PICTURES, source.RESULTS)


@pytest.mark.parametrize(
    "edited",
    [
        "diffusion/sampler.py",
        "diffusion/loading.py",
        "generation/results.py",
        "generation/canonical.py",
        "evaluation/known_pictures.py",
        "catalogue/sheets.py",
        "runtime/seeds.py",
        "runtime/pictures.py",
    ],
)
def test_an_edit_of_what_makes_pictures_changes_both(backend: Path, edited: str) -> None:
    with (backend / edited).open("a") as file:
        file.write("# edited\n")
    pictures, results = digests(backend)
    assert pictures != source.PICTURES
    assert results != source.RESULTS


@pytest.mark.parametrize(
    "edited",
    [
        "attack/prompts.py",
        "attack/classifier_training.py",
        "attack/attacks/textual_inversion.py",
        "classification/judges/classifier.py",
        "classification/engine.py",
        "probing/probes/likelihood.py",
    ],
)
def test_an_edit_of_an_evaluation_or_a_judge_leaves_pictures_as_they_are(backend: Path, edited: str) -> None:
    with (backend / edited).open("a") as file:
        file.write("# edited\n")
    pictures, results = digests(backend)
    assert pictures == source.PICTURES
    assert results != source.RESULTS


@pytest.mark.parametrize(
    "edited",
    [
        "report/html.py",
        "report/page.css",
        "verdict/decision.py",
        "coordinator/api/server.py",
        "testbed/train.py",
        "serve.py",
    ],
)
def test_an_edit_of_what_reads_or_serves_results_changes_nothing(backend: Path, edited: str) -> None:
    with (backend / edited).open("a") as file:
        file.write("# edited\n")
    assert digests(backend) == (source.PICTURES, source.RESULTS)


def test_a_new_a_renamed_and_a_removed_file_count(backend: Path) -> None:
    known = {source.RESULTS}
    (backend / "attack" / "prompts.json").write_text("[]")
    known.add(digests(backend)[1])
    (backend / "attack" / "prompts.json").rename(backend / "attack" / "words.json")
    known.add(digests(backend)[1])
    (backend / "attack" / "words.json").unlink()
    assert digests(backend)[1] == source.RESULTS
    (backend / "attack" / "prompts.py").unlink()
    known.add(digests(backend)[1])
    assert len(known) == 4


def test_bytecode_stubs_editors_files_and_line_endings_do_not_count(backend: Path) -> None:
    (backend / "attack" / "__pycache__").mkdir()
    (backend / "attack" / "__pycache__" / "prompts.cpython-311.pyc").write_bytes(b"\0")
    (backend / "attack" / "prompts.pyi").touch()
    (backend / "attack" / ".#prompts.py").symlink_to("somebody@host.1234")
    prompts = backend / "attack" / "prompts.py"
    prompts.write_bytes(prompts.read_bytes().replace(b"\n", b"\r\n"))
    assert digests(backend) == (source.PICTURES, source.RESULTS)


def test_a_room_without_source_is_refused(backend: Path) -> None:
    shutil.rmtree(backend / "diffusion")
    with pytest.raises(RuntimeError, match="the source of diffusion must be in the folder"):
        digests(backend)


@pytest.mark.parametrize(
    ("roots", "packages", "rooms"),
    [
        (ENGINES[:1], [], source.PICTURE_ROOMS),
        (ENGINES, COMPONENTS, source.RESULT_ROOMS),
    ],
    ids=["pictures", "results"],
)
def test_all_that_takes_part_in_a_result_is_covered(
    roots: list[str], packages: list[str], rooms: tuple[str, ...]
) -> None:
    graph = grimp.build_graph("unerase_backend", "unerase", cache_dir=None, exclude_type_checking_imports=True)
    roots = [*roots, *(module for package in packages for module in graph.find_children(package))]
    taking_part = set(roots).union(*(graph.find_upstream_modules(module) for module in roots))
    assert len(taking_part) > 30
    # Bounds only refuse a request; messages of models, audits and verdicts are in no kept result; and what a file of a
    # pack says stands in the concept, which is part of the key.
    messages = {f"unerase.v1.{name}_pb2" for name in ("types", "bounds", "models", "audits", "verdicts")}
    covered = messages | {"unerase._prompt_pack", "unerase._yaml_file", "unerase_backend"}
    prefixes = ("unerase.internal", *(f"unerase_backend.{room}" for room in rooms))
    left_out = {each for each in taking_part - covered if not f"{each}.".startswith(tuple(f"{p}." for p in prefixes))}
    assert left_out == set()


def test_our_own_modules_have_one_digest(install: Install) -> None:
    install({"acme.py": ""}, "acme")
    assert source.component_digest("unerase_backend.attack.attacks.p4d") == source.RESULTS
    assert source.component_digest("unerase_backend.probing.probes.likelihood") == source.RESULTS
    assert source.component_digest("acme") != source.RESULTS


@pytest.mark.parametrize("edited", ["acme/probe.py", "acme/helper.py", "acme/words.txt", "acme/inner/deep.py"])
def test_an_edit_anywhere_in_a_third_partys_package_changes_its_digest(install: Install, edited: str) -> None:
    files = dict.fromkeys(["acme/__init__.py", "acme/probe.py", "acme/helper.py", "acme/inner/deep.py"], "")
    install(files | {"acme/words.txt": "one"}, "acme.probe")
    before = source.component_digest("acme.probe"), source.registered_digest(GROUP)
    assert before == (source.component_digest("acme.probe"), source.registered_digest(GROUP))
    install({edited: "edited = True\n"}, "acme.probe")
    assert source.component_digest("acme.probe") != before[0]
    assert source.registered_digest(GROUP) != before[1]


def test_another_version_of_a_third_partys_distribution_changes_its_digest(install: Install) -> None:
    install({"acme/__init__.py": ""}, "acme")
    before = source.component_digest("acme"), source.registered_digest(GROUP)
    install({}, "acme", version="1.1")
    assert source.component_digest("acme") != before[0]
    assert source.registered_digest(GROUP) != before[1]


def test_an_edit_of_a_third_partys_family_of_models_changes_every_digest(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unerase.backbones" in OWN_GROUPS
    monkeypatch.setattr(source, "_BACKBONES", GROUP)
    assert source.with_backbones("rooms") == "rooms"
    install({"acme/__init__.py": "", "acme/family.py": ""}, "acme.family")
    before = source.with_backbones("rooms")
    assert before != "rooms"
    install({"acme/family.py": "edited = True\n"}, "acme.family")
    assert source.with_backbones("rooms") not in (before, "rooms")
    assert source.with_backbones("other rooms") != source.with_backbones("rooms")


def test_a_namespace_that_packages_share_is_not_theirs(install: Install) -> None:
    install(
        {"shared/mine/__init__.py": "", "shared/mine/probe.py": "", "shared/theirs/probe.py": ""}, "shared.mine.probe"
    )
    before = source.component_digest("shared.mine.probe")
    install({"shared/theirs/probe.py": "edited = True\n"}, "shared.mine.probe")
    assert source.component_digest("shared.mine.probe") == before
    install({"shared/mine/__init__.py": "edited = True\n"}, "shared.mine.probe")
    assert source.component_digest("shared.mine.probe") != before


def test_a_module_that_cannot_be_found_costs_nothing_else(install: Install) -> None:
    install({}, "not_there.at_all")
    assert source.component_digest("not_there.at_all") != source.RESULTS
    assert source.registered_digest(GROUP) != source.registered_digest("unerase.nothing")


def test_nothing_of_a_third_party_is_imported_for_its_digest(install: Install) -> None:
    install({"acme/__init__.py": "raise SystemExit", "acme/judge.py": "raise SystemExit"}, "acme.judge")
    assert len(source.registered_digest(GROUP)) == 64
