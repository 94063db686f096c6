"""Components by name: the backend's own, one module each in a package, and those of third parties, by entry point.

A third party's module is imported once a process. One that cannot be imported, takes a name that is taken or describes
itself badly is kept out with everything that it registered, and costs nothing else: the log and whoever asks for it are
told which entry point of which distribution it is, and why. Own components come first, then the packages in order of
distribution and entry point, so that every process keeps out the same ones.
"""

import importlib
import logging
import pkgutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

_logger = logging.getLogger(__name__)

_MAX_PROBLEM = 300

Component = TypeVar("Component")


class RegistrationError(ValueError):
    """What is registered has a name that is taken, or is badly described."""


@dataclass(frozen=True)
class _Registered(Generic[Component]):
    component: Component
    module: str
    """Where it was defined."""
    origin: str
    """The module that was being imported for a third party; empty for the backend's own."""


def third_party() -> str:
    """Return the module that is being imported for a third party; empty while our own register."""
    return _Importing.module


class Components(Generic[Component]):
    """The components of one kind; `kind` is their name in messages, as in "evaluation".

    `beside` is a package whose own components share the names without being of this table.
    """

    def __init__(self, kind: str, package: str, entry_point_group: str, beside: str = "") -> None:
        self._kind = kind
        self._package = package
        self._group = entry_point_group
        self._beside = beside
        self._registered: dict[str, _Registered[Component]] = {}
        self._broken: dict[str, str] = {}
        self._loaded_own = False
        self._loaded = False

    def add(self, name: str, component: Component, module: str) -> None:
        """Register a component that `module` defines.

        Raises:
            RegistrationError: the name is taken.
        """
        origin = _Importing.module
        if origin:
            # A third party's module may be imported for another table's sake, before our own components are.
            self._load_own()
        first = self._registered[name].module if name in self._registered else ""
        if origin and self._beside and _is_own_name(name, self._beside):
            first = self._beside
        if first:
            raise RegistrationError(f"the {self._kind} {name!r} is registered twice, first by {first}")
        self._registered[name] = _Registered(component, module, origin)

    def all(self) -> dict[str, Component]:
        """Return every component by name, those of third parties included."""
        if not self._loaded:
            self._load_own()
            for entry_point in sorted(entry_points(group=self._group), key=_order):
                self._load(entry_point)
            self._loaded = True
        return {name: registered.component for name, registered in sorted(self._registered.items())}

    def broken(self) -> dict[str, str]:
        """Return the entry points that cannot be used, by name, each with its distribution and the reason."""
        self.all()
        return dict(sorted(self._broken.items()))

    def _load_own(self) -> None:
        if not self._loaded_own:
            self._loaded_own = True
            # Whoever is being imported now, these are ours.
            with _importing(""):
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")

    def _load(self, entry_point: EntryPoint) -> None:
        module = entry_point.module
        problem = _import(entry_point)
        theirs = [name for name, registered in self._registered.items() if registered.origin == module]
        if problem:
            for name in theirs:
                del self._registered[name]
        elif not theirs:
            problem = f"its module registers no {self._kind}"
        if problem:
            described = f"the entry point {entry_point.name!r} of {_distribution(entry_point)}"
            self._broken[entry_point.name] = f"{described} cannot be used: {problem}"
            _logger.error("%s", self._broken[entry_point.name])


class _Importing:
    """What this process has imported for third parties: a module that serves two tables is imported once."""

    lock = threading.RLock()
    module = ""
    problems: dict[str, str] = {}  # noqa: RUF012 - one process, one table


def _import(entry_point: EntryPoint) -> str:
    """Import the entry point's module and return why that failed; empty where it did not."""
    module = entry_point.module
    with _Importing.lock:
        if module not in _Importing.problems:
            _Importing.problems[module] = ""
            with _importing(module):
                try:
                    importlib.import_module(module)
                # A module may end the process while it is imported; that would end the room.
                except (Exception, SystemExit) as error:
                    _logger.error("the module %s of a third party", module, exc_info=error)
                    _Importing.problems[module] = _problem(error)
        return _Importing.problems[module]


@contextmanager
def _importing(module: str) -> Iterator[None]:
    before, _Importing.module = _Importing.module, module
    try:
        yield
    finally:
        _Importing.module = before


def _problem(error: BaseException) -> str:
    """Say what went wrong without a path of this machine; the log has the rest."""
    text = str(error).partition("\n")[0]
    if isinstance(error, RegistrationError):
        return text
    if not text or "/" in text or "\\" in text or len(text) > _MAX_PROBLEM:
        return f"{type(error).__name__} while it was imported; the log has the rest"
    return f"{type(error).__name__}: {text}"


def _is_own_name(name: str, package: str) -> bool:
    """Whether a module of ours in `package` has the name: each registers its own, or some that begin with it."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return any(f"{name}-".startswith(f"{module.name.replace('_', '-')}-") for module in modules)


def _order(entry_point: EntryPoint) -> tuple[str, str, str]:
    return _distribution(entry_point), entry_point.name, entry_point.value


def _distribution(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else "an unnamed distribution"
