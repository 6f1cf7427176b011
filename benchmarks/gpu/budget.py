"""The class `Budget`, which divides the seconds of a run of `benchmarks.gpu` among its parts."""

import time
from collections.abc import Callable, Sequence


class Budget:
    """Seconds of a whole run, divided among parts that run one after another.

    A part may take its own share and all time that the parts before it have left over. Therefore a part that hangs
    takes no time from the shares of later parts.

    Args:
        seconds: Seconds of the whole run, from now on.
        wanted: Seconds that each part wants, in the order in which they run. If the budget is longer than their sum,
            all shares are scaled up by the same factor.
        first: Number of parts with priority, which are the first ones. If the budget is too short for all parts, these
            get what they want and the others divide the rest. If it is too short even for these, their shares are
            scaled down by the same factor, and the others get shares of zero and only the time that is left over.
        clock: Function that returns the time in seconds.

    Raises:
        ValueError: If `seconds` is not positive.
    """

    def __init__(
        self, seconds: float, wanted: Sequence[float], first: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not seconds > 0:
            raise ValueError(f"`seconds` must be positive, got {seconds}: give the benchmark some time.")
        self.seconds, self.clock, self.start = seconds, clock, clock()
        total, served = sum(wanted), sum(wanted[:first])
        scale = max(seconds / total, min(1.0, seconds / served if served else 1.0))
        rest = max(0.0, seconds - scale * served)
        rest_scale = rest / (total - served) if total > served else 0.0
        self.shares = [share * (scale if part < first else rest_scale) for part, share in enumerate(wanted)]

    def limit(self, part: int) -> float:
        """Return the number of seconds that a part may take if it starts now; zero or less if none are left.

        Args:
            part: Index of the part.
        """
        return self.left() - sum(self.shares[part + 1 :])

    def left(self) -> float:
        """Return the number of seconds that are left of the whole run."""
        return self.start + self.seconds - self.clock()


__all__ = ["Budget"]
