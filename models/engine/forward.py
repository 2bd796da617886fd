"""Forward passes that survive what a batch may bring: rows that make the network fail, and memory that runs out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

import torch

from models.bundle import LoadedModel, Predictions
from models.engine.batching import plan
from models.engine.cache import RowScore
from models.engine.lanes import lanes, passes
from models.tokens import Row, TokenizedRow
from monitor.errors import ModelError
from monitor.telemetry import get_logger

__all__ = ["Forward", "RowFailure"]

log = get_logger(__name__)

# After so many batches without trouble, a budget that was halved is doubled again.
_RECOVER_AFTER = 50


class RowFailure(Exception):  # noqa: N818 - stands in a list of results in place of a score
    """Why one row cannot be scored; all other rows of its batch were."""


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


class Forward:
    """Runs a model over rows, in batches of about equal length: on a card one after the other, else one a core.

    May be called from several threads: what came first is computed first.

    Parameters
    ----------
    token_budget : tokens, padding included, in one pass at the most.
    image_budget : pictures in one pass at the most.
    """

    def __init__(self, model: LoadedModel, *, token_budget: int, image_budget: int) -> None:
        self.model = model
        self.token_budget = token_budget
        self.image_budget = image_budget
        self.shrink = 1
        self._untroubled = 0
        self._turn = threading.Lock()
        self._cores = torch.get_num_threads() if model.device.type == "cpu" else 1
        self._lanes = lanes(self._cores)

    def tokenize(self, rows: Sequence[Row]) -> list[TokenizedRow | RowFailure]:
        """Token ids of N rows; a row that the tokenizer cannot take is a failure, found by bisection."""
        if not rows:
            return []
        try:
            return list(self.model.tokenize(rows))
        except Exception as error:  # noqa: BLE001 - any failure is narrowed down to its row
            if len(rows) == 1:
                return [RowFailure(f"The text cannot be split into tokens: {_told(error)}.")]
            half = len(rows) // 2
            return self.tokenize(rows[:half]) + self.tokenize(rows[half:])

    def run(self, rows: Sequence[TokenizedRow]) -> list[RowScore | RowFailure]:
        """Scores of N rows, in their order. Raises `ModelError` when the device itself has failed."""
        results: dict[int, RowScore | RowFailure] = {}
        running = {self._start(batch, rows): batch for batch in self._plan(rows)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    batch = running.pop(future)
                    error = future.exception()
                    if isinstance(error, Exception):
                        parts = self._after(error, batch, rows, results)
                        running |= {self._start(part, rows): part for part in parts}
                    else:
                        results.update(zip(batch, future.result(), strict=True))
                        self._recover()
        finally:
            for future in running:
                future.cancel()
        return [results[index] for index in range(len(rows))]

    def _start(self, batch: list[int], rows: Sequence[TokenizedRow]) -> Future[list[RowScore]]:
        return self._lanes.submit(self._scores, batch, rows)

    def _plan(self, rows: Sequence[TokenizedRow]) -> list[list[int]]:
        lengths, shown = [len(row.ids) for row in rows], [row.pixels is not None for row in rows]
        tokens, images = max(1, self.token_budget // self.shrink), max(1, self.image_budget // self.shrink)
        if self._cores > 1:
            tokens = passes(sum(lengths), self._cores, tokens)
            images = max(1, min(images, -(-sum(shown) // self._cores)))
        return plan(lengths, shown, token_budget=tokens, image_budget=images)

    def _scores(self, batch: list[int], rows: Sequence[TokenizedRow]) -> list[RowScore]:
        chosen = [rows[i] for i in batch]
        said: Predictions = self.model.forward(chosen)
        return [
            RowScore(
                said.sentiment[i],
                said.topic[i],
                said.chart[i],
                float(said.p_chart[i]),
                bool(said.used_chart[i]),
                bool(row.ids),
                row.truncated,
            )
            for i, row in enumerate(chosen)
        ]

    def _after(
        self,
        error: Exception,
        batch: list[int],
        rows: Sequence[TokenizedRow],
        results: dict[int, RowScore | RowFailure],
    ) -> list[list[int]]:
        """The batches to try instead of the one that failed."""
        if isinstance(error, torch.AcceleratorError) and not _out_of_memory(error):
            # An assertion on the card leaves its context unusable: only a new process helps.
            raise ModelError(f"The device failed: {_told(error)}.", "Start the process again.") from error
        if len(batch) == 1:
            log.warning("row cannot be scored", error=_told(error), tokens=len(rows[batch[0]].ids))
            results[batch[0]] = RowFailure(f"The model fails on this text or picture: {_told(error)}.")
            return []
        if _out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            with self._turn:
                self.shrink = min(2 * self.shrink, self.token_budget)
                self._untroubled = 0
            log.warning("memory ran out, batches become smaller", token_budget=self.token_budget // self.shrink)
        half = len(batch) // 2
        return [batch[:half], batch[half:]]

    def _recover(self) -> None:
        if self.shrink == 1:
            return
        with self._turn:
            self._untroubled += 1
            if self._untroubled >= _RECOVER_AFTER:
                self.shrink = max(1, self.shrink // 2)
                self._untroubled = 0


def _told(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
