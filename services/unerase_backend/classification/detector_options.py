"""The options of a judge of kind `detector`: one ONNX file, what goes into it, and how its output is read.

A picture becomes the model's input by, in this order: padding to the input's proportions (`fit`), resizing, the order
of colours, and

    value = (pixel * scale - mean) / std,    pixel from 0 to 255, mean and std for each colour in the model's order.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from unerase_backend.classification.options import JudgeOptions

MAX_SIDE = 4096


def _inside(value: str) -> str:
    parts = PurePosixPath(value).parts
    if not value.endswith(".onnx") or len(parts) != 1 or value != parts[0]:
        raise ValueError("must be the name of an .onnx file in the judge's folder")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in value if value.count(name) > 1}):
        raise ValueError(f"names {twice[0]!r} twice")
    return value


def _lowered(value: object) -> object:
    # Windows' Get-FileHash writes capitals.
    return value.lower() if isinstance(value, str) else value


_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Three = Annotated[tuple[_Finite, _Finite, _Finite], Field(strict=False)]
_Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
_ClassName = Annotated[str, Field(min_length=1, max_length=1000)]


class DetectorOptions(JudgeOptions):
    """What a catalogue entry says of its detector."""

    file: Annotated[str, AfterValidator(_inside)]
    # Another file under the same name is another judge.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), BeforeValidator(_lowered)]
    # A concept is detected if the highest confidence of its classes is at least this.
    threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    # In the order of the model's output; empty: the names that the file itself carries, as those of Ultralytics do.
    classes: Annotated[tuple[_ClassName, ...], Field(strict=False, max_length=100_000), AfterValidator(_distinct)] = ()
    # yolov8: (pictures, 4 + classes, boxes), each box as centre, width, height and confidences. detections: (pictures,
    # boxes, 6), each box as two corners, its confidence and its class; the model has dropped what overlaps. The others:
    # (pictures, classes), as probabilities, or as logits that still need a softmax or a sigmoid.
    output: Literal["yolov8", "detections", "probabilities", "softmax", "sigmoid"] = "yolov8"
    # The side of the model's square input, or its width and height in pixels; needed if the file leaves them open.
    size: _Side | Annotated[tuple[_Side, _Side], Field(strict=False)] | None = None
    # What is done with a picture of other proportions: stretched, or padded at its right and lower edge (pad) or on
    # both sides (letterbox), with pixels of the value `fill`.
    fit: Literal["stretch", "pad", "letterbox"] = "pad"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    # Whether a picture that is made smaller is smoothed first; OpenCV's bilinear resizing, which most detectors were
    # trained with, does not.
    antialias: bool = False
    colours: Literal["rgb", "bgr"] = "rgb"
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1 / 255
    mean: _Three = (0.0, 0.0, 0.0)
    std: _Three = (1.0, 1.0, 1.0)
    # Of two boxes that overlap by more than this share (intersection over union), the less confident one is dropped.
    overlap: _Share = 0.45
    # Whether a box also drops those of other classes.
    overlap_across_classes: bool = False

    @model_validator(mode="after")
    def _divisible(self) -> "DetectorOptions":
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def sides(self) -> tuple[int, int] | None:
        """The input's width and height in pixels; None if the entry does not say."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
