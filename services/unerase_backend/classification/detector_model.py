"""What an ONNX model takes and gives, held against the options of its catalogue entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unerase_backend.classification import onnx_file
from unerase_backend.classification.detector_options import DetectorOptions
from unerase_backend.runtime.counting import counted
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
    output: str
    """The form of the output, as in the option."""

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
            raise _unexpected(f"{name} takes pictures of {counted(shape[0], 'colour')}, not of 3")
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
            output=options.output,
        )
        model._try_out(session)
        return model

    def _try_out(self, session: Any) -> None:
        """Run the model on a black picture: a file may leave its shapes open, and then fail for some of them."""
        width, height = self.sides
        shape = (height, width, 3) if self.channels_last else (3, height, width)
        black = np.zeros((self.rows or 1, *shape), self.input_type)
        try:
            (answer,) = session.run([self.output_name], {self.input_name: black})
        except Exception as error:
            # onnxruntime's errors have no common base of their own.
            why = str(error).partition("\n")[0][:300]
            raise _unexpected(f"{self.file} fails on a picture of {width} x {height} pixels: {why}") from error
        self.check_output(answer.shape)

    def check_output(self, shape: Sequence[int]) -> None:
        """Check the shape of the output against the classes.

        Raises:
            UnsafeModelError: it does not fit.
        """
        count = len(self.classes)
        expected, form = {
            "yolov8": ((4 + count, 0), f"(pictures, 4 + {count}, boxes)"),
            "detections": ((0, 6), "(pictures, boxes, 6)"),
        }.get(self.output, ((count,), f"(pictures, {count})"))
        # 0 stands for any number of boxes.
        fits = len(shape) - 1 == len(expected) and all(
            size == given for size, given in zip(expected, shape[1:], strict=True) if size
        )
        if not fits:
            given = ", ".join(["pictures", *map(str, shape[1:])])
            raise _unexpected(
                f"{self.file} gives ({given}), and its entry expects {form}, with "
                f"{counted(count, 'class', 'classes')}: check the options output and classes"
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
