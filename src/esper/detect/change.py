"""Lasting shifts of a series, and alarms that stay up for a while."""


class Cusum:
    """Two-sided cumulative sum of z-scores.

    S⁺ ← max(0, S⁺ + z − k) and S⁻ ← max(0, S⁻ − z − k); an alarm is raised when either exceeds h, and both start anew.
    Scores count as at most ``clip`` in size, so that one outlier is no shift.

    Args:
        allowance: k; shifts of less than k are no news. With 1, a bias that the smoothing of `RobustEwma` leaves behind a
            curve never adds up: its scale grows until such a bias is 0.79.
        threshold: h. With k = 1 and h = 5 independent normal scores raise one alarm in about 10⁵.
        clip: Largest size at which a score counts.

    Raises:
        ValueError: If a number is not positive, or one score alone could raise an alarm.

    References:
        Page 1954, "Continuous inspection schemes"; run lengths: Siegmund 1985, "Sequential Analysis", chapter 2.
    """

    def __init__(self, *, allowance: float = 1.0, threshold: float = 5.0, clip: float = 4.0) -> None:
        if min(allowance, threshold, clip) <= 0:
            raise ValueError("allowance, threshold and clip are positive")
        if clip - allowance > threshold:
            raise ValueError("one score alone could raise an alarm: lower clip or raise threshold")
        self._allowance, self._threshold, self._clip = allowance, threshold, clip
        self.up = self.down = 0.0

    def observe(self, z: float) -> bool:
        """Take a score in, and say whether it raises an alarm."""
        held = max(-self._clip, min(self._clip, z))
        self.up = max(0.0, self.up + held - self._allowance)
        self.down = max(0.0, self.down - held - self._allowance)
        alarm = max(self.up, self.down) > self._threshold
        if alarm:
            self.up = self.down = 0.0
        return alarm


class AlarmHold:
    """An alarm that stays up, so that one disturbance is one alarm and not many.

    Args:
        hold: Observations for which it stays up after the last trigger, that one included.

    Attributes:
        onsets: How often it went up.

    Raises:
        ValueError: If ``hold`` is below 1.
    """

    def __init__(self, hold: int) -> None:
        if hold < 1:
            raise ValueError(f"hold must be at least 1, not {hold}")
        self._hold = hold
        self._left = 0
        self.onsets = 0

    @property
    def raised(self) -> bool:
        """Whether it is up."""
        return self._left > 0

    def observe(self, trigger: bool) -> bool:
        """Take one observation in, and say whether the alarm is up."""
        if trigger:
            self.onsets += not self.raised
        self._left = self._hold if trigger else max(0, self._left - 1)
        return self.raised
