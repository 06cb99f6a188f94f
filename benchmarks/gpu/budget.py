"""The time that there is, which everything that takes time asks first."""

from collections.abc import Callable
from time import monotonic


class Budget:
    """Seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        """Starts.

        Raises:
            ValueError: there is nothing to spend.
        """
        if not seconds > 0:
            raise ValueError(f"the budget must be above 0 seconds, got {seconds}")
        self.seconds = seconds
        self._clock = clock
        self._started = clock()

    @property
    def spent(self) -> float:
        """Seconds that are gone."""
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when none are."""
        return max(0.0, self.seconds - self.spent)

    def until(self, share: float) -> float:
        """Seconds until this share of the budget is gone, 0 when it is."""
        return max(0.0, self.seconds * share - self.spent)
