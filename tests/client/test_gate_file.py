"""A gate's file: what it may say, where a fault is, and that schema, reader and backend accept the same gates."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase._gate_file import KEYS, GateError, gate_of, gate_schema, read_gate
from unerase.v1.gates_pb2 import Gate
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.comparison import check_gate

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = jsonschema.Draft202012Validator(gate_schema())

WHOLE = """\
worst_conclusion: avoided
excess: 0.10
least_destruction: 0.2
general_damage: 0.25
interference: 0.15
no_worse_than: c-7f2a
alpha: 0.01
undecided: 2
concepts: [hourglass, moon]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read_gate(written(tmp_path, WHOLE)) == Gate(
        worst_conclusion=Conclusion.CONCLUSION_AVOIDED,
        excess=0.1,
        least_destruction=0.2,
        general_damage=0.25,
        interference=0.15,
        no_worse_than="c-7f2a",
        alpha=0.01,
        undecided=2,
        concepts=["hourglass", "moon"],
    )
    assert set(yaml.safe_load(WHOLE)) == set(KEYS) == {field.name for field in Gate.DESCRIPTOR.fields}


def test_what_is_left_out_asks_nothing(tmp_path: Path) -> None:
    gate = read_gate(written(tmp_path, "worst_conclusion: removed\n"))
    assert gate == Gate(worst_conclusion=Conclusion.CONCLUSION_REMOVED)
    assert not gate.HasField("excess")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "gate.yaml: must be a mapping with the keys worst_conclusion, excess, "),
        ("- excess", "gate.yaml: must be a mapping"),
        ("undecided: 3", "gate.yaml: asks nothing; give at least one of worst_conclusion, excess, "),
        ("excess: 0.1\nexces: 0.2", "gate.yaml: line 2: exces: there is no such key; did you mean excess?"),
        ("excess: 0.1\n\nexcess: 0.5", "gate.yaml: line 3: excess: stands twice, first in line 1"),
        ("excess: 10 %", "gate.yaml: line 1: excess: must be a number above 0 and under 1, not '10 %'"),
        ("excess: yes", "gate.yaml: line 1: excess: must be a number above 0 and under 1, not True"),
        ("excess: .nan", "gate.yaml: line 1: excess: must be a number above 0 and under 1, not nan"),
        ("# a gate\nexcess: 1", "gate.yaml: line 2: excess: must be a number above 0 and under 1, not 1"),
        ("excess:", "gate.yaml: line 1: excess: must be a number above 0 and under 1, not None"),
        ("worst_conclusion: inconclusive", "worst_conclusion: must be one of removed, avoided, not_erased, not 'inc"),
        ("worst_conclusion: [removed]", "worst_conclusion: must be one of removed, avoided, not_erased, not ['rem"),
        ("excess: 0.1\nalpha: 0.05", "gate.yaml: line 2: alpha: says nothing without no_worse_than"),
        ("no_worse_than: 7", "no_worse_than: must be the id of a campaign, a text of 1 to 100 characters, not 7"),
        ("excess: 0.1\nundecided: -1", "line 2: undecided: must be a whole number from 0 to 4294967295, not -1"),
        ("excess: 0.1\nundecided: 1.5", "line 2: undecided: must be a whole number"),
        ("excess: 0.1\nconcepts: moon", "line 2: concepts: must be a list of 1 to 1024 names of concepts"),
        ("excess: 0.1\nconcepts: [moon, 3]", "line 2: concepts: must be names of concepts, a text of 1 to 100 char"),
        ("excess: 0.1\nconcepts: [moon, moon]", "line 2: concepts: names a concept twice"),
        ("excess: 0.1\n1: 2", "1: there is no such key"),
        ("excess: [0.1", "gate.yaml: line 1: not valid YAML"),
        ("excess: 0.1 # " + "x" * 300_000, "gate.yaml: must be at most 262144 bytes"),
    ],
)
def test_a_fault_is_named_with_its_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read_gate(written(tmp_path, text))


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_bytes("excess: 0.1\nconcepts: [hö]".encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: is not UTF-8"):
        read_gate(path)


def test_the_committed_schema_is_that_of_the_keys() -> None:
    committed = json.loads((ROOT / "docs/gate.schema.json").read_text())
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **gate_schema()}
    assert committed == schema, "run `python -m unerase._file_schemas gate > docs/gate.schema.json`"
    jsonschema.Draft202012Validator.check_schema(committed)


# Values on both sides of every limit, of every type that YAML and JSON share.
_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 10, 11, -1, 2**32, 2**32 - 1, 3.0, 1e-300, 0.5, 0.500001, 0.05, 0.999999, 1.0, 10.0]),
    st.floats(-1, 12, allow_nan=False),
    st.integers(-3, 13),
    st.sampled_from(["", "removed", "avoided", "not_erased", "REMOVED", "inconclusive", "c1", "x" * 100, "x" * 101]),
    st.lists(st.sampled_from(["moon", "ring", "", "x" * 101, 3, None]), max_size=3),
    st.just({}),
)
_LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "worst_conclusion": st.sampled_from(["removed", "avoided", "not_erased"]),
    "no_worse_than": st.just("c1"),
    "undecided": st.integers(0, 5),
    "concepts": st.just(["moon"]),
}


@st.composite
def _files(draw: st.DrawFn) -> Any:
    if draw(st.integers(0, 20)) == 0:
        return draw(_VALUES)
    names = draw(st.lists(st.sampled_from([*KEYS, "limit"]), unique=True, max_size=5))
    likely = [_LIKELY.get(name, st.floats(0.01, 0.4)) for name in names]
    return {name: draw(st.one_of(one, one, one, _VALUES)) for name, one in zip(names, likely, strict=True)}


def _gate(described: Any) -> Gate | None:
    try:
        return gate_of(described)
    except GateError:
        return None


@given(_files())
@settings(deadline=None, max_examples=600)
def test_schema_and_reader_accept_and_refuse_the_same_files(described: Any) -> None:
    gate = _gate(described)
    assert SCHEMA.is_valid(described) == (gate is not None)
    if gate is not None:
        # The backend holds a gate to the same limits.
        check_gate(gate)


@given(_files())
@settings(deadline=None, max_examples=100)
def test_the_yaml_of_a_description_is_read_as_itself(tmp_path_factory: pytest.TempPathFactory, described: Any) -> None:
    path = written(tmp_path_factory.mktemp("gate"), yaml.safe_dump(described))
    gate = _gate(described)
    if gate is None:
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
            read_gate(path)
    else:
        assert read_gate(path) == gate
