"""Registries of components: the backend's own, one module each in a package, and third parties', by entry point.

A third party's module is imported once in a process. A module that cannot be imported, uses a name that is taken, or
describes a component badly is rejected with everything that it registered, and nothing else is affected. The log, and
the error for a request of such a component, name the entry point, its distribution and the reason. Own components
come first, then the packages in order of distribution and entry point, so that every process rejects the same ones.
One thread imports at a time, and the others wait for it: nobody sees a part of what there is.
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
    """A component has a name that is taken, or a bad description."""


@dataclass(frozen=True)
class _Registered(Generic[Component]):
    component: Component
    module: str
    """The module that defines it."""
    origin: str
    """The third party's module that was being imported; empty for the backend's own components."""


def third_party() -> str:
    """Return the module that is being imported for a third party; empty while our own register."""
    module: str = getattr(_Importing.by_thread, "module", "")
    return module


class Components(Generic[Component]):
    """The components of one kind; `kind` is their name in messages, as in "evaluation".

    `beside` is a package whose components are in another registry but share the names of this one.
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
        origin = third_party()
        if origin:
            # A third party's module may be imported for another registry, before this one has loaded the backend's own.
            self._load_own()
        first = self._registered[name].module if name in self._registered else ""
        if origin and self._beside and _is_own_name(name, self._beside):
            first = self._beside
        if first:
            raise RegistrationError(f"the {self._kind} {name!r} is registered twice, first by {first}")
        self._registered[name] = _Registered(component, module, origin)

    def all(self) -> dict[str, Component]:
        """Return every component by name, including those of third parties."""
        if not self._loaded:
            with _Importing.lock:
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
            # Whatever module is being imported now, these are the backend's own.
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
    """The modules of third parties that this process has imported: one that serves two registries is imported once."""

    lock = threading.RLock()
    by_thread = threading.local()
    """Its `module` is what this thread imports for a third party; imports of other threads are not part of that."""
    problems: dict[str, str] = {}  # noqa: RUF012 - one for each process


def _import(entry_point: EntryPoint) -> str:
    """Import the entry point's module and return why that failed; empty if it did not fail."""
    module = entry_point.module
    if module not in _Importing.problems:
        _Importing.problems[module] = ""
        with _importing(module):
            try:
                importlib.import_module(module)
            # A module may raise SystemExit while it is imported, which would end the room.
            except (Exception, SystemExit) as error:
                _logger.error("the third-party module %s cannot be loaded", module, exc_info=error)
                _Importing.problems[module] = _problem(error)
    return _Importing.problems[module]


@contextmanager
def _importing(module: str) -> Iterator[None]:
    before, _Importing.by_thread.module = third_party(), module
    try:
        yield
    finally:
        _Importing.by_thread.module = before


def _problem(error: BaseException) -> str:
    """Describe an error without paths of this machine; the log has the details."""
    text = str(error).partition("\n")[0]
    if isinstance(error, RegistrationError):
        return text
    if not text or "/" in text or "\\" in text or len(text) > _MAX_PROBLEM:
        return f"{type(error).__name__} while it was imported; the log has the details"
    return f"{type(error).__name__}: {text}"


def _is_own_name(name: str, package: str) -> bool:
    """Return whether a module in `package` has the name, or a name that this one begins with."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return any(f"{name}-".startswith(f"{module.name.replace('_', '-')}-") for module in modules)


def _order(entry_point: EntryPoint) -> tuple[str, str, str]:
    return _distribution(entry_point), entry_point.name, entry_point.value


def _distribution(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else "an unnamed distribution"
