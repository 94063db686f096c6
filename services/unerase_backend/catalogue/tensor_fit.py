"""Whether the tensors of files fit a part of a pipeline, by names and shapes."""

from collections.abc import Mapping

from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.tensor_names import fits
from unerase_backend.catalogue.tensors import StoredTensor
from unerase_backend.runtime.counting import counted


def compare_tensors(
    part: str,
    tensors: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    findings: Findings,
    *,
    whole: bool,
) -> None:
    """Compare the tensors of files with the shapes of a part; only the `whole` weights must have all."""
    files = ", ".join(dict.fromkeys(shown(tensor.file.name) for tensor in tensors.values()))
    if unknown := sorted(set(tensors) - set(shapes)):
        listed = _some([shown(tensors[name].name) for name in unknown])
        what = f"the {part} has no tensor {listed}"
        findings.problem(part, "WEIGHTS_UNKNOWN_TENSOR", what, found=files)
    if missing := sorted(set(shapes) - set(tensors)) if whole else []:
        what = f"the weights of {part} lack {counted(len(missing), 'tensor')}: {_some(missing)}"
        findings.problem(part, "WEIGHTS_INCOMPLETE", what, found=files)
    wrong = [name for name in sorted(set(shapes) & set(tensors)) if not fits(tensors[name].shape, shapes[name])]
    if wrong:
        name = wrong[0]
        others = len(wrong) - 1
        more = f", and {others} more {'has' if others == 1 else 'have'} another shape" if others else ""
        what = f"{name!r} of the {part} has the shape {shapes[name]}, not {tensors[name].shape} as in the file{more}"
        remedy = "the file belongs to another architecture, or to another configuration"
        findings.problem(part, "WEIGHTS_WRONG_SHAPE", what, remedy=remedy, found=files)


def _some(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} more"
