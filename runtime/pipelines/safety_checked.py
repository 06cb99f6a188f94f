"""Pipelines whose pictures a safety checker looks at before they are given back."""

from collections.abc import Mapping
from typing import Any

from ..backends import Array
from ..image_processor import CLIPImageProcessor
from ..model_folder import ModelFolder
from ..networks import Engine
from ..safety_checker import SafetyChecker, run_safety_checker
from .text_guided import TextGuidedPipeline


class SafetyCheckedPipeline(TextGuidedPipeline, abstract=True):
    """A pipeline that has a safety checker if its model folder has one; `pipeline.safety_checker = None` takes it away.

    Raises:
        ValueError: there is a safety checker and nothing that prepares its input.
    """

    component_names = (*TextGuidedPipeline.component_names, "safety_checker", "feature_extractor")
    optional_components = ("safety_checker", "feature_extractor")

    safety_checker: SafetyChecker | None
    feature_extractor: CLIPImageProcessor | None

    def __init__(self, folder: ModelFolder, engine: Engine, components: Mapping[str, Any]) -> None:
        super().__init__(folder, engine, components)
        if self.safety_checker is not None:
            self._own_feature_extractor()

    def _warning(self) -> str | None:
        if self.safety_checker is not None or not self.folder.index.get("requires_safety_checker", True):
            return None
        return (
            f"{type(self).__name__} runs without the safety checker that its model asks for: keep to the conditions of "
            "the model's licence, and show no unfiltered pictures to the public; requires_safety_checker=False turns "
            "this warning off"
        )

    def _checked(self, images: Array) -> tuple[Array, list[bool] | None]:
        if self.safety_checker is None:
            return images, None
        return run_safety_checker(images, self.safety_checker, self._own_feature_extractor())

    def _own_feature_extractor(self) -> CLIPImageProcessor:
        if self.feature_extractor is None:
            raise ValueError(
                f"{type(self).__name__} has a safety_checker and no feature_extractor that prepares its input: "
                "give one, or safety_checker=None"
            )
        return self.feature_extractor
