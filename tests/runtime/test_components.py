"""Components of third parties: found by entry point, and kept out one by one where they are broken."""

import logging
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from unerase_backend.attack.registry import ATTACKS
from unerase_backend.probing.registry import PROBES
from unerase_backend.runtime import components
from unerase_backend.runtime.components import Components, RegistrationError

GROUP = "unerase.test"
OWN = "unerase_backend.attack.attacks"
TABLE: dict[str, Components[str]] = {}
"""The table that the modules of a test register in."""

Install = Callable[..., str]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Components[str]:
    monkeypatch.setattr(components._Importing, "problems", {})
    TABLE["own"] = Components("thing", OWN, GROUP, beside="unerase_backend.probing.probes")
    return TABLE["own"]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path: a module for each entry point, which registers what it is given."""
    installed: list[str] = []

    def put(distribution: str, modules: Mapping[str, str]) -> str:
        # Modules of another test's distribution would be found where they were imported first.
        unique = f"third_{uuid.uuid4().hex}"
        site = tmp_path / distribution
        (site / unique).mkdir(parents=True)
        (site / unique / "__init__.py").touch()
        for name, code in modules.items():
            head = f"from {__name__} import TABLE\nadd = lambda name: TABLE['own'].add(name, name, __name__)\n"
            (site / unique / f"{name}.py").write_text(head + textwrap.dedent(code))
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {unique}.{name}" for name in modules]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        monkeypatch.syspath_prepend(site)
        installed.append(unique)
        return unique

    yield put
    for name in list(sys.modules):
        if name.partition(".")[0] in installed:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _importable_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the tests write import this one, whatever pytest calls it."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_what_an_entry_points_module_registers_is_found(table: Components[str], install: Install) -> None:
    install("good", {"one": "add('a')", "two": "add('b'); add('c')"})
    assert list(table.all()) == ["a", "b", "c"]
    assert table.broken() == {}


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise OSError('/home/somebody/secret')", "OSError while it was imported; the log has the details"),
        ("def broken(:", "SyntaxError"),
        ("add('a')\nadd('a')", "the thing 'a' is registered twice, first by"),
        ("pass", "its module registers no thing"),
    ],
)
def test_a_broken_one_is_named_and_costs_nothing_else(
    table: Components[str], install: Install, caplog: pytest.LogCaptureFixture, code: str, problem: str
) -> None:
    install("bad", {"broken": f"add('x')\n{code}" if code != "pass" else code, "fine": "add('fine')"})
    with caplog.at_level(logging.ERROR):
        assert list(table.all()) == ["fine"]
    assert list(table.broken()) == ["broken"]
    why = table.broken()["broken"]
    assert why.startswith("the entry point 'broken' of bad 1.0 cannot be used: ")
    assert problem in why
    assert "/" not in why
    assert why in caplog.text


def test_of_two_that_take_one_name_the_first_distribution_has_it(table: Components[str], install: Install) -> None:
    install("zebra", {"mine": "add('name')"})
    first = install("aardvark", {"mine": "add('name')"})
    assert list(table.all()) == ["name"]
    assert table.broken() == {
        "mine": "the entry point 'mine' of zebra 1.0 cannot be used: "
        f"the thing 'name' is registered twice, first by {first}.mine"
    }


def test_our_own_evaluations_bear_the_names_of_their_modules() -> None:
    """By which a room that does not import another's modules knows their names."""
    for registry in (PROBES, ATTACKS):
        for name, evaluation in registry.all().items():
            module = evaluation.run.__module__
            if module.startswith("unerase_backend."):
                assert components._is_own_name(name, module.rpartition(".")[0])
                assert f"{name}-".startswith(module.rpartition(".")[2].replace("_", "-") + "-")


@pytest.mark.parametrize("name", ["standard-prompt", "likelihood", "likelihood-of-theirs"])
def test_a_name_of_the_other_rooms_is_taken(table: Components[str], install: Install, name: str) -> None:
    install("thief", {"theft": f"add('{name}')"})
    assert table.all() == {}
    assert "registered twice, first by unerase_backend.probing.probes" in table.broken()["theft"]


def test_our_own_come_first_even_where_a_third_party_is_imported_before(
    table: Components[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One module may serve two tables: the first of them imports it when nothing of the second is there yet."""
    install("both", {"both": "add('first-of-all')"})
    loaded: list[str] = []
    load_own = table._load_own

    def load() -> None:
        loaded.append(components.third_party())
        load_own()

    monkeypatch.setattr(table, "_load_own", load)
    other: Components[str] = Components("other thing", OWN, GROUP)
    other.all()
    assert len(loaded) == 1
    assert list(table.all()) == ["first-of-all"]
    # Imported once, it registered nothing in the other table.
    assert "its module registers no other thing" in other.broken()["both"]


def test_a_thread_that_asks_while_another_one_imports_waits_for_the_whole(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator once got the kinds of judge without those that another thread was importing, into a report."""
    package = install("slow", {"first": "add('first')", "later": f"from {__name__} import ASK\nASK()\nadd('later')"})
    table = TABLE["own"] = Components("thing", package, "unerase.nobody")
    seen: list[list[str]] = []
    asker = threading.Thread(target=lambda: seen.append(list(table.all())))
    early: list[bool] = []

    def ask_meanwhile() -> None:
        asker.start()
        asker.join(0.3)
        early.append(not asker.is_alive())

    monkeypatch.setitem(globals(), "ASK", ask_meanwhile)
    assert list(table.all()) == ["first", "later"]
    asker.join()
    assert early == [False]
    assert seen == [["first", "later"]]


def test_what_another_thread_registers_meanwhile_is_not_the_third_partys(
    table: Components[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register_elsewhere() -> None:
        thread = threading.Thread(target=lambda: table.add("ours", "ours", "here"))
        thread.start()
        thread.join()

    monkeypatch.setitem(globals(), "ASK", register_elsewhere)
    install("broken", {"broken": f"from {__name__} import ASK\nASK()\n1 / 0"})
    assert table.all() == {"ours": "ours"}


def test_what_a_broken_module_left_in_another_table_is_kept_out_too(table: Components[str], install: Install) -> None:
    install("half", {"half": "add('left')\n1 / 0"})
    other: Components[str] = Components("other thing", OWN, GROUP)
    assert "ZeroDivisionError" in other.broken()["half"]
    assert table.all() == {}
    assert "ZeroDivisionError" in table.broken()["half"]


def test_whoever_registers_twice_here_is_told(table: Components[str]) -> None:
    table.add("a", "first", "here")
    with pytest.raises(RegistrationError, match="the thing 'a' is registered twice, first by here"):
        table.add("a", "second", "there")
    assert table.all() == {"a": "first"}
