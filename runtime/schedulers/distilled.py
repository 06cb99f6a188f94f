"""What schedulers of distilled models share: the few timesteps that such a model knows, and the walk over them.

A latent consistency model (Luo et al. 2023, arXiv:2310.04378) is distilled at so many evenly spaced timesteps, 50 as a
rule; sampling visits a few of these.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .sigma_scheduler import IndexedScheduler
from .spacing import check_steps

Timesteps = NDArray[np.int64]

logger = logging.getLogger(__name__)


class DistilledScheduler(IndexedScheduler, abstract=True):
    """A scheduler of a distilled model, which knows where the loop is; its noise levels are those of the training."""

    interchangeable = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Chooses the timesteps to visit: so many of the distillation's, or the caller's own, falling.

        Args:
            num_inference_steps: how many.
            device: accepted, and means nothing here.
            original_inference_steps: how many the model was distilled at; the configuration's when None.
            timesteps: the caller's own, instead.
            strength: in (0, 1], of image to image: the noisiest part of the schedule is left out.

        Raises:
            ValueError: not exactly one of the two is given, or it is not possible.
        """
        del device
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie above 0 and up to 1, got {strength}")
        distilled = self._distilled_timesteps(original_inference_steps, strength)
        if timesteps is not None:
            visited = _own_timesteps(timesteps, len(self), strength)
            if foreign := sorted(set(visited.tolist()) - set(distilled.tolist()), reverse=True):
                logger.warning("the model may not have been distilled at these timesteps: %s", foreign)
        else:
            steps = check_steps(num_inference_steps, len(self))
            most = len(distilled) if original_inference_steps is None else min(len(distilled), original_inference_steps)
            if steps > most:
                raise ValueError(
                    f"num_inference_steps must be at most {most}, got {steps}: the model was distilled at no more; "
                    "see original_inference_steps and strength"
                )
            places = np.floor(np.linspace(0, len(distilled), steps, endpoint=False)).astype(np.int64)
            visited = distilled[places]
        self.timesteps, self.num_inference_steps = visited, len(visited)
        self._restart()

    def _distilled_timesteps(self, original_inference_steps: int | None, strength: float) -> Timesteps:
        """The timesteps to choose from, from noisy to clean: the distillation's, as far as the strength goes.

        Raises:
            ValueError: there are none, or more than the model was trained with.
        """
        chosen = original_inference_steps
        original = self.config["original_inference_steps"] if chosen is None else chosen
        if original is None or not 1 <= original <= len(self):
            raise ValueError(f"original_inference_steps must lie between 1 and {len(self)}, got {original}")
        return np.arange(int(original * strength), 0, -1) * (len(self) // original) - 1

    def previous_timestep(self, timestep: int) -> int:
        """The timestep that follows in the schedule, which is less noisy; -1 after the last."""
        after = self.index_for_timestep(timestep) + 1
        return int(self.timesteps[after]) if after < len(self.timesteps) else -1


def _own_timesteps(timesteps: Sequence[int], train_steps: int, strength: float) -> Timesteps:
    """The caller's timesteps, less those that image to image of a strength leaves out.

    Raises:
        ValueError: they do not fall, or the model was not trained with them, or none is left.
    """
    own = np.asarray(timesteps, dtype=np.int64)
    if own.ndim != 1 or not own.size or np.any(np.diff(own) >= 0) or own[0] >= train_steps or own[-1] < 0:
        raise ValueError(f"timesteps must fall, from below {train_steps} to 0 at the least")
    visited = own[len(own) - int(len(own) * strength) :]
    if not visited.size:
        raise ValueError(f"strength {strength} leaves none of the {len(own)} timesteps")
    return visited
