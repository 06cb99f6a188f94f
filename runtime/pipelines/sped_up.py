"""How a pipeline is told to do less; what it leaves out then is `speed`'s and `step_reuse`'s."""

from dataclasses import replace

from ..speed import Speed
from .deep_cache import DeepCachePipeline


class SpedUpPipeline(DeepCachePipeline, abstract=True):
    """A pipeline that can leave out some of a picture's computations."""

    def enable_speed(self, speed: str | Speed = "balanced") -> None:
        """Leaves out what a preset does, or other options do, in place of what was left out so far.

        Scheduler, number of steps and precision stay as they are.

        Args:
            speed: "exact", "balanced", or a `Speed`.

        Raises:
            ValueError: an unknown preset, or this pipeline cannot leave that out; it stays as it was.
        """
        wanted = Speed.of(speed)
        if wanted.guidance_interval != (0, 1) and self._knows_scale:
            raise ValueError(
                f"{type(self).__name__} cannot have a guidance interval: its UNet is told the guidance scale, "
                "so that there is no unconditional half to leave out"
            )
        if wanted.deep_cache_interval > 1:
            self.enable_deep_cache(wanted.deep_cache_interval)
        elif self.cache_interval is not None:
            self.disable_deep_cache()
        self.speed = wanted

    def disable_speed(self) -> None:
        """Computes everything again."""
        self.enable_speed("exact")

    def enable_guidance_interval(self, start: float = 0.0, stop: float = 1.0) -> None:
        """Computes guidance from one part of the way to another, 0 to 1, and elsewhere the conditional half alone.

        Raises:
            ValueError: not 0 <= start <= stop <= 1, or this pipeline's UNet has no unconditional half.
        """
        self.enable_speed(replace(self.speed, guidance_interval=(start, stop)))

    def disable_guidance_interval(self) -> None:
        """Computes guidance in all steps again."""
        self.enable_guidance_interval()

    def enable_step_reuse(self, threshold: float, limit: int | None = None) -> None:
        """Uses the last prediction once more where the latents move evenly; see `step_reuse`.

        Args:
            threshold: how much they may deviate from that; 0 turns it off.
            limit: how often in a row; a twentieth of the loop's calls when None.

        Raises:
            ValueError: a negative threshold, or a limit below 1.
        """
        self.enable_speed(replace(self.speed, reuse_threshold=threshold, reuse_limit=limit))

    def disable_step_reuse(self) -> None:
        """Computes the prediction of every step again."""
        self.enable_step_reuse(0.0)

    def enable_deep_cache(self, cache_interval: int = 3, cache_branch_id: int | None = None) -> None:
        """Computes the whole UNet in some calls alone; see `DeepCachePipeline.enable_deep_cache`."""
        super().enable_deep_cache(cache_interval, cache_branch_id)
        self.speed = replace(self.speed, deep_cache_interval=cache_interval)

    def disable_deep_cache(self) -> None:
        """Computes the whole UNet in all calls again."""
        super().disable_deep_cache()
        self.speed = replace(self.speed, deep_cache_interval=1)

    @property
    def _knows_scale(self) -> bool:
        """Whether the UNet is told the guidance scale, as a latent consistency model is."""
        return self.unet.config["time_cond_proj_dim"] is not None
