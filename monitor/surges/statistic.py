"""From counts to scores: how surprising every key's windows are, given what is usual for it and what the others do."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.surges.baseline import SUMS, Baseline
from monitor.surges.common import CommonMode
from monitor.surges.config import JudgeConfig
from monitor.surges.mixture import Burst, Calm, gamma_poisson, mixture
from monitor.surges.sorts import VOLUME
from monitor.surges.windows import Windows

__all__ = ["Measured", "Statistic"]

Ints = NDArray[np.int64]
Array = NDArray[np.float64]

MAX_SCORE: Final = 300.0


class Measured(NamedTuple):
    """Arrays (windows, keys measured) but for `score`, `window` (keys measured,). p is 1 where there is too little.

    `window` is the row of the window that has most to say."""

    negatives: Array
    stories: Array
    expected: Array
    common: Array
    burst: Array
    p: Array
    score: Array
    window: Ints


class Statistic:
    """Measures keys by a judge's baseline and windows; see docs/surges.md. `common` is a part of the judge's state."""

    def __init__(self, config: JudgeConfig, baseline: Baseline, windows: Windows) -> None:
        self._config = config
        self._baseline = baseline
        self._windows = windows
        self._volume_alone = config.surge == VOLUME
        self.common = CommonMode(len(config.windows))
        weights = np.array(config.windows, dtype=np.float64) ** config.window_weight
        self._weights: Array = weights / weights.sum()
        # Where there are no others to tell the level of the window itself, it wanders the more the longer that is.
        wander = config.volume_wander if self._volume_alone else 0.0
        self._wander: Array = wander * np.array(config.windows, dtype=np.float64) / config.level_minutes
        # A topic or the market is a changing mix of keys, so that its share wanders more than any one's.
        self._dispersion = np.where(SUMS, config.pooled_dispersion, config.dispersion)
        self._burst = Burst(config.burst_probability, config.burst_mean, config.burst_shape)

    def begin_block(self) -> None:
        """The baseline has learned a block."""
        self.common.begin_block(self._baseline, self._windows)

    def measure(self, index: Ints) -> Measured:
        """The statistic for the keys of `index`."""
        config, baseline, windows = self._config, self._baseline, self._windows
        counts = windows.counts[:, :, index].astype(np.float64)
        negatives, stories = counts[0], counts[1].copy()
        counts[1] -= counts[0]
        others, kinds = counts[1], baseline.kinds[index]
        rates = np.array([baseline.negatives[index], baseline.others[index]])
        usual_counts = windows.exposure[:, None] * rates[:, None]
        common = self.common.factors(index, kinds, windows, counts, usual_counts)
        mu_y, mu_z = usual_counts * common
        expected, burst, p = mu_y.copy(), np.zeros_like(mu_y), np.ones_like(mu_y)
        calm = Calm(
            config.level_shape + windows.level_of(index),
            config.level_shape + windows.level_exposure[:, None] * baseline.rate[index],
        )
        # Only what may turn out surprising is worth the special functions.
        usual = mu_y * (calm.shape + others) / (calm.rate + mu_z)
        enough = (negatives >= config.min_stories) & (negatives > usual + np.sqrt(usual)) & (usual > 0.0)
        if not self._volume_alone:
            enough &= mu_z > 0.0
        if enough.any():
            y, level = negatives[enough], Calm(calm.shape[enough], calm.rate[enough])
            rows, columns = np.nonzero(enough)
            dispersion = (1.0 / baseline.share_weight[index] + self._dispersion[kinds])[columns] + self._wander[rows]
            result = (
                gamma_poisson(y, mu_y[enough], level, dispersion)
                if self._volume_alone
                else mixture(y, others[enough], mu_y[enough], mu_z[enough], level, dispersion, self._burst)
            )
            p[enough], expected[enough], burst[enough] = result.p, result.expected, result.burst
        say = self._weights[:, None] / p
        # Harmonic mean p-value: the windows overlap, and several that agree say more than the best alone.
        score = np.minimum(np.maximum(np.log10(say.sum(axis=0)), 0.0), MAX_SCORE)
        return Measured(negatives, stories, expected, common[0], burst, p, score, say.argmax(axis=0))
