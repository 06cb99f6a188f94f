"""The pipeline of a task, whatever the model: `AutoPipelineForImage2Image.from_pretrained(folder)`."""

from pathlib import Path
from typing import Any, ClassVar

from ..model_folder import open_model_folder
from ..source import SOURCE_OPTIONS, local_model
from .base import DiffusionPipeline, class_known
from .latent_consistency import LatentConsistencyModelImg2ImgPipeline, LatentConsistencyModelPipeline
from .stable_diffusion import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from .stable_diffusion_xl import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING = "text to image", "image to image", "inpainting"

#: task -> pipeline, a family of models each: a model that one of them is for can be used by the others
FAMILIES: tuple[dict[str, type[DiffusionPipeline]], ...] = (
    {
        TEXT_TO_IMAGE: StableDiffusionPipeline,
        IMAGE_TO_IMAGE: StableDiffusionImg2ImgPipeline,
        INPAINTING: StableDiffusionInpaintPipeline,
    },
    {
        TEXT_TO_IMAGE: StableDiffusionXLPipeline,
        IMAGE_TO_IMAGE: StableDiffusionXLImg2ImgPipeline,
        INPAINTING: StableDiffusionXLInpaintPipeline,
    },
    {
        TEXT_TO_IMAGE: LatentConsistencyModelPipeline,
        IMAGE_TO_IMAGE: LatentConsistencyModelImg2ImgPipeline,
    },
)


class _AutoPipeline:
    """Chooses a pipeline; none is made of this class itself."""

    task: ClassVar[str]

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} makes pipelines by from_pretrained and from_pipe")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> DiffusionPipeline:
        """Opens a model for this task.

        Args:
            pretrained_model_name_or_path: see `DiffusionPipeline.from_pretrained`.
            **options: likewise.

        Raises:
            ValueError: the model is not for this task.
        """
        source = {name: options[name] for name in SOURCE_OPTIONS if name in options}
        folder = open_model_folder(local_model(pretrained_model_name_or_path, **source))
        pipeline = cls._pipeline_for(class_known(folder), str(folder.path))
        return pipeline.from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **components: Any) -> DiffusionPipeline:
        """The pipeline of this task with the networks of another pipeline: nothing is loaded again.

        Raises:
            ValueError: its model is not for this task.
        """
        return cls._pipeline_for(type(pipeline), type(pipeline).__name__).from_pipe(pipeline, **components)

    @classmethod
    def _pipeline_for(cls, pipeline: type[DiffusionPipeline], name: str) -> type[DiffusionPipeline]:
        for family in FAMILIES:
            if pipeline in family.values() and cls.task in family:
                return family[cls.task]
        raise ValueError(f"{name} is for a {pipeline.__name__}, which has no {cls.task} beside it")


class AutoPipelineForText2Image(_AutoPipeline):
    """Text to image."""

    task = TEXT_TO_IMAGE


class AutoPipelineForImage2Image(_AutoPipeline):
    """Image to image."""

    task = IMAGE_TO_IMAGE


class AutoPipelineForInpainting(_AutoPipeline):
    """Inpainting."""

    task = INPAINTING
