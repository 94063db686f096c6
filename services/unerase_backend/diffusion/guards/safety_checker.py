"""Safety checker: the picture is withheld if its CLIP embedding lies near one of the checker's concepts.

It is StableDiffusionSafetyChecker of diffusers, with its own embeddings and thresholds: a picture is withheld if the
cosine with any concept exceeds that concept's threshold, all thresholds 0.01 lower if it is near a "special care"
concept. By default it is the pipeline's own, in `safety_checker` and `feature_extractor`, in safetensors. Each picture
is checked in a call of its own, so that a check does not depend on the others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unerase_backend.catalogue import digests
from unerase_backend.catalogue.configs import parse
from unerase_backend.catalogue.entries import Folder
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.catalogue.model_files import WeightFiles, checker_weights
from unerase_backend.catalogue.tensors import read_header
from unerase_backend.diffusion.guarding import Guard, guard
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

if TYPE_CHECKING:
    import torch

    from unerase_backend.diffusion.pictures import Picture

_PREPROCESSOR = "preprocessor_config.json"
_CHECKER, _EXTRACTOR = "safety_checker", "feature_extractor"
# What is the checker's own, beside the encoder of CLIP.
_TENSORS = (
    "concept_embeds",
    "concept_embeds_weights",
    "special_care_embeds",
    "special_care_embeds_weights",
    "visual_projection.weight",
)


class SafetyCheckerParameters(GuardParameters):
    """The folders of checker and image processor; by default the pipeline's own."""

    folder: Folder | None = None
    feature_extractor: Folder | None = None


@guard("safety-checker")
class SafetyChecker(Guard):
    """Withholds pictures as diffusers' pipeline does."""

    Parameters = SafetyCheckerParameters

    def __init__(self, parameters: SafetyCheckerParameters, pipeline: Path, device: torch.device) -> None:
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessorPil

        super().__init__(parameters, pipeline, device)
        checker, extractor = _folders(parameters, pipeline)
        weights = _weights(checker)
        # It would warn of each picture that it withholds.
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
        try:
            loaded, found = StableDiffusionSafetyChecker.from_pretrained(
                checker,
                variant=weights.variant or None,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            self._processor = CLIPImageProcessorPil.from_pretrained(extractor, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UnsafeModelError("the safety checker does not load", reason="WEIGHTS_UNREADABLE") from error
        lacking = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
        if lacking:
            raise _incomplete(lacking)
        self._device = device
        self._checker = loaded.to(device).eval()

    @classmethod
    def files(cls, parameters: SafetyCheckerParameters, pipeline: Path) -> Sequence[Path]:
        """Return the checker's weights, those that are loaded of several, and configurations."""
        checker, extractor = _folders(parameters, pipeline)
        config = extractor / _PREPROCESSOR
        try:
            json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            message = f"the safety checker needs {extractor.name}/{_PREPROCESSOR}, which is missing or is not JSON"
            raise UnsafeModelError(message, reason="MODEL_INCOMPLETE") from None
        weights = _weights(checker).files
        beside = [path for path in digests.folder_paths(_CHECKER, checker, None) if path.suffix != digests.WEIGHTS]
        return [*sorted([*weights, *beside]), config]

    @classmethod
    def parts(cls, parameters: SafetyCheckerParameters) -> Sequence[str]:
        """Return the folders that the parameters leave to the pipeline."""
        given = {_CHECKER: parameters.folder, _EXTRACTOR: parameters.feature_extractor}
        return [part for part, folder in given.items() if folder is None]

    @classmethod
    def check_files(cls, parameters: SafetyCheckerParameters, pipeline: Path) -> None:
        """Check that the checker has its configuration, its concepts and their thresholds."""
        checker, _ = _folders(parameters, pipeline)
        if not isinstance(parse(checker / "config.json"), dict):
            message = f"the safety checker needs {checker.name}/config.json, which is missing or is not JSON"
            raise UnsafeModelError(message, reason="MODEL_INCOMPLETE")
        held = {name for path in _weights(checker).files for name in read_header(path).tensors}
        if lacking := sorted(set(_TENSORS) - held):
            raise _incomplete(lacking)

    def refuse(self, picture: Picture) -> str:
        """Return which concepts the picture lies near; empty if none."""
        import numpy as np
        import torch

        pixels = torch.as_tensor(self._processor(picture, return_tensors="np")["pixel_values"]).to(self._device)
        with torch.inference_mode():
            _, (flagged,) = self._checker(clip_input=pixels, images=np.zeros((1, 1, 1, 3)))
        return "the picture lies near one of the checker's concepts" if flagged else ""


def _folders(parameters: SafetyCheckerParameters, pipeline: Path) -> tuple[Path, Path]:
    return parameters.folder or pipeline / _CHECKER, parameters.feature_extractor or pipeline / _EXTRACTOR


def _weights(checker: Path) -> WeightFiles:
    findings = Findings(_CHECKER)
    weights = checker_weights(checker, findings)
    if weights is None:
        first = findings.problems[0]
        raise UnsafeModelError(first.text, reason=first.reason)
    return weights


def _incomplete(lacking: Sequence[str]) -> UnsafeModelError:
    message = f"the weights of the safety checker lack {counted(len(lacking), 'tensor')}, {lacking[0]} among them"
    return UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
