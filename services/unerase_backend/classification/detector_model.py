"""What an ONNX model takes and gives, held against the options of its catalogue entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unerase_backend.classification import onnx_file
from unerase_backend.classification.detector_options import DetectorOptions
from unerase_backend.runtime.errors import UnsafeModelError

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class DetectorModel:
    """A model's input and output, as its file and its catalogue entry say."""

    file: str
    input_name: str
    input_type: Any
    output_name: str
    sides: tuple[int, int]
    """The input's width and height in pixels."""
    channels_last: bool
    rows: int
    """Pictures in one call, if the file fixes it; 0 if it leaves it open."""
    classes: tuple[str, ...]
    boxed: bool
    """Whether the output holds boxes."""

    @classmethod
    def of(cls, session: Any, options: DetectorOptions) -> "DetectorModel":
        """Return what a session's model takes and gives.

        Raises:
            UnsafeModelError: it is not what the options say, or they leave open what the file leaves open.
        """
        name = options.file
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
            raise _unexpected(f"{name} must take one tensor of pictures, (pictures, 3, height, width), of floats")
        if outputs[0].type not in _TYPES:
            raise _unexpected(f"the first output of {name} must be a tensor of floats, not {outputs[0].type}")
        batch, *shape = inputs[0].shape
        # A shape that says neither is the customary one.
        last = shape[2] == 3 and shape[0] != 3
        if shape[2 if last else 0] not in (3, *_open(shape)):
            raise _unexpected(f"{name} takes pictures of {shape[0]} colours, not of 3")
        height, width = shape[:2] if last else shape[1:]
        carried = onnx_file.named_classes(session.get_modelmeta().custom_metadata_map)
        model = cls(
            file=name,
            input_name=inputs[0].name,
            input_type=_TYPES[inputs[0].type],
            output_name=outputs[0].name,
            sides=_sides(name, width, height, options),
            channels_last=last,
            rows=batch if isinstance(batch, int) else 0,
            classes=_classes(name, carried, options),
            boxed=options.output == "yolov8",
        )
        if all(isinstance(size, int) for size in outputs[0].shape[1:]):
            model.check_output(outputs[0].shape)
        return model

    def check_output(self, shape: Sequence[Any]) -> None:
        """Check the shape of the output against the classes.

        Raises:
            UnsafeModelError: it does not fit.
        """
        expected = len(self.classes) + (4 if self.boxed else 0)
        if len(shape) != (3 if self.boxed else 2) or shape[1] != expected:
            form = f"(pictures, 4 + {len(self.classes)}, boxes)" if self.boxed else f"(pictures, {len(self.classes)})"
            given = ", ".join(str(size) if isinstance(size, int) else "pictures" for size in shape)
            raise _unexpected(
                f"{self.file} gives ({given}), and its entry expects {form}, with {len(self.classes)} classes: "
                "check the options output and classes"
            )


def _open(shape: Sequence[Any]) -> list[Any]:
    return [size for size in shape if not isinstance(size, int)]


def _sides(name: str, width: Any, height: Any, options: DetectorOptions) -> tuple[int, int]:
    given = options.sides
    if given is None and not (isinstance(width, int) and isinstance(height, int)):
        raise _unexpected(f"{name} takes pictures of any size: give the option size, the side in pixels")
    sides = given or (width, height)
    for side, fixed in zip(sides, (width, height), strict=True):
        if isinstance(fixed, int) and fixed != side:
            raise _unexpected(f"{name} takes pictures of {width} x {height} pixels, and its option size is {given}")
    return sides


def _classes(name: str, carried: tuple[str, ...], options: DetectorOptions) -> tuple[str, ...]:
    given = options.classes
    if not given and not carried:
        raise _unexpected(f"{name} does not name its classes: give the option classes, in the order of its output")
    if given and carried and given != carried:
        where = next((i for i, (one, two) in enumerate(zip(given, carried, strict=False)) if one != two), None)
        which = f"class {where} is {given[where]!r}, the file's {carried[where]!r}" if where is not None else ""
        raise _unexpected(
            f"{name} has other classes than the option classes: {which or f'{len(carried)}, not {len(given)}'}"
        )
    return given or carried


def _unexpected(message: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason="MODEL_UNEXPECTED")
