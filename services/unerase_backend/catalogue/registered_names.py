"""What tenants call registered models, in place of the names that rooms know, and back."""

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from unerase_backend.catalogue.definitions import NAME, PREFIX
from unerase_backend.runtime.errors import FieldViolation, UneraseError

AnyMessage = TypeVar("AnyMessage", bound=Message)


class ModelNames:
    """The registered models that some request or audit names, bases included."""

    def __init__(self, called: Mapping[str, str]) -> None:
        """Take what each `model:DIGEST` is called."""
        self._called = dict(called)
        self._internal = {name: internal for internal, name in called.items()}

    def __bool__(self) -> bool:
        return bool(self._called)

    def __iter__(self) -> Any:
        return iter(self._called)

    def inward(self, name: str) -> str:
        """Return the name that rooms know; other names stay."""
        return self._internal.get(name, name)

    def text(self, text: str) -> str:
        """Return a text with every name that only rooms know replaced."""
        if PREFIX not in text:
            return text
        return NAME.sub(lambda found: self._called.get(found[0], found[0]), text)

    def message(self, message: AnyMessage) -> AnyMessage:
        """Replace names in all texts of a message, in place, and return it."""
        if self._called:
            self._rename(message)
        return message

    def error(self, error: UneraseError) -> UneraseError:
        """Return an error with names replaced in all that it says."""
        if not self._called:
            return error
        renamed = error.extended(self.text(error.message))
        renamed.metadata = {key: self.text(value) for key, value in error.metadata.items()}
        renamed.violations = tuple(
            FieldViolation(self.text(each.field), self.text(each.description)) for each in error.violations
        )
        return renamed

    def _rename(self, message: Any) -> None:
        for field, value in message.ListFields():
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._rename_map(field, value)
            elif field.message_type is not None:
                for each in value if field.is_repeated else (value,):
                    self._rename(each)
            elif field.type == field.TYPE_STRING:
                if field.is_repeated:
                    value[:] = [self.text(each) for each in value]
                elif (renamed := self.text(value)) != value:
                    setattr(message, field.name, renamed)

    def _rename_map(self, field: Any, value: Any) -> None:
        kind = field.message_type.fields_by_name["value"]
        for key in list(value):
            if kind.message_type is not None:
                self._rename(value[key])
            elif kind.type == kind.TYPE_STRING:
                value[key] = self.text(value[key])
