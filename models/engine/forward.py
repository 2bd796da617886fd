"""Forward passes that survive what a batch may bring: rows that make the network fail, and memory that runs out."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import torch

from models.answers import LoadedModel, Predictions
from models.engine.batching import plan
from models.engine.cache import RowScore
from models.engine.lanes import lanes, longest_pass, part_tokens, passes, turn
from models.engine.packed import PackedEncoder
from models.engine.waiting import Part, PartQueue
from models.tokens import Row, TokenizedRow
from monitor.errors import ModelError
from monitor.telemetry import get_logger

__all__ = ["Forward", "RowFailure", "out_of_memory", "starved"]

log = get_logger(__name__)

# After so many passes without trouble, a budget that was halved is doubled again.
_RECOVER_AFTER = 50
# The last is what TorchScript makes of a `MemoryError`.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")


class RowFailure(Exception):  # noqa: N818 - stands in a list of results in place of a score
    """Why one row cannot be scored; all other rows of its batch were."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the device's or the machine's, has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Rows of a call that go into one pass, and by how much the budget was shrunk when they were put together.

    `apart`: without those of other calls, as something has failed; `alone`: and when nothing of its call is computed.
    """

    batch: list[int]
    shrink: int
    apart: bool = False
    alone: bool = False


class Forward:
    """Runs a model over rows, in passes of rows of about equal length: on a card one after the other, else one a core.

    May be called from several threads: short calls are computed before long ones (`lanes.turn`), and what waits of
    several calls goes into one pass, where the encoder needs no padding.

    Parameters
    ----------
    token_budget : tokens in one pass at the most, padding included where the encoder needs any.
    image_budget : pictures in one pass at the most.
    """

    def __init__(self, model: LoadedModel, *, token_budget: int, image_budget: int) -> None:
        self.model = model
        self.token_budget = token_budget
        self.image_budget = image_budget
        self.shrink = 1
        self._untroubled = 0
        self._turn = threading.Lock()
        self._on_cpu = model.device.type == "cpu"
        self._cores = torch.get_num_threads() if self._on_cpu else 1
        self._lanes = lanes(self._cores)
        self._waiting = PartQueue()

    @property
    def _padded(self) -> bool:
        """Each row of a pass takes as many tokens as the longest."""
        return not isinstance(self.model.encoder, PackedEncoder)

    def wait_for_room(self, seconds: float) -> None:
        """While rows wait that go before those of a short call that comes now, for so many seconds at the most."""
        self._waiting.wait_while_due(seconds)

    def tokenize(self, rows: Sequence[Row]) -> list[TokenizedRow | RowFailure]:
        """Token ids of N rows; a row that the tokenizer cannot take is a failure, found by bisection.

        Raises `ModelError` when memory does not even suffice for one row.
        """
        if not rows:
            return []
        try:
            return list(self.model.tokenize(rows))
        except Exception as error:
            if len(rows) == 1:
                if out_of_memory(error):
                    raise starved(error) from error
                return [RowFailure(f"The text cannot be split into tokens: {_told(error)}.")]
            half = len(rows) // 2
            return self.tokenize(rows[:half]) + self.tokenize(rows[half:])

    def run(self, rows: Sequence[TokenizedRow]) -> list[RowScore | RowFailure]:
        """Scores of N rows, in their order.

        Raises `ModelError` when the device itself has failed, or has not even the memory for one row by itself.
        """
        results: dict[int, RowScore | RowFailure] = {}
        at = turn(sum(map(len, rows)))
        running = {self._start(one, rows, at): one for one in self._plan(rows)}
        # Rows that memory did not suffice for: tried again when nothing of this call is computed beside them.
        starving: list[_Pass] = []
        try:
            while running or starving:
                if not running:
                    one = starving.pop()
                    running = {self._start(one, rows, at): one}
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    one = running.pop(future)
                    error = future.exception()
                    if not isinstance(error, Exception):
                        results.update(zip(one.batch, future.result(), strict=True))
                        continue
                    for part in self._after(error, one, rows, results):
                        if part.alone:
                            starving.append(part)
                        else:
                            running[self._start(part, rows, at)] = part
        finally:
            for future in running:
                future.cancel()
        return [results[index] for index in range(len(rows))]

    def _start(self, one: _Pass, rows: Sequence[TokenizedRow], at: float) -> Future[list[RowScore]]:
        # Only without padding do rows of any length go together.
        apart = one.apart or self._padded
        chosen = [rows[i] for i in one.batch]
        part = Part(chosen, apart=apart or any(row.pixels is not None for row in chosen))
        self._waiting.put(part, at)
        self._lanes.submit_at(at, self._next)
        return part.future

    def _most(self, waiting: int) -> int:
        """Tokens of one pass at the most, when so many wait."""
        most = max(1, self.token_budget // self.shrink)
        return passes(waiting, self._cores, min(most, longest_pass(waiting))) if self._on_cpu else most

    def _next(self) -> None:
        """Compute the next pass, on a lane; nothing when another one has taken all that waited."""
        shrink = self.shrink
        parts = self._waiting.take(self._most)
        try:
            if parts and not self._compute(parts, shrink):
                for part in parts:
                    self._alone(part, shrink)
        except BaseException as error:  # noqa: BLE001 - raised in the threads that wait, which would wait for ever
            for part in parts:
                if not part.future.done():
                    part.future.set_exception(error)

    def _alone(self, part: Part, shrink: int) -> None:
        try:
            self._compute([part], shrink)
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits for the scores
            part.future.set_exception(error)

    def _compute(self, parts: Sequence[Part], shrink: int) -> bool:
        """Give parts their scores, or a single one its error; False: several have failed, and are tried one by one."""
        try:
            scores = iter(self._scores([row for part in parts for row in part.rows]))
        except Exception as error:
            if len(parts) == 1:
                raise
            # None of them is to suffer for another one.
            log.warning("a pass failed, its parts are tried one by one", parts=len(parts), error=_told(error))
            if out_of_memory(error):
                self.halve(shrink)
            return False
        self._recover()
        for part in parts:
            part.future.set_result(list(itertools.islice(scores, len(part.rows))))
        return True

    def _plan(self, rows: Sequence[TokenizedRow]) -> list[_Pass]:
        lengths, shown = [len(row.ids) for row in rows], [row.pixels is not None for row in rows]
        shrink = self.shrink
        tokens, images = max(1, self.token_budget // shrink), max(1, self.image_budget // shrink)
        if self._on_cpu:
            in_all = sum(lengths)
            # What is computed apart from others comes in whole passes.
            share = passes if self._padded or any(shown) else part_tokens
            tokens = share(in_all, self._cores, min(tokens, longest_pass(in_all)))
            images = max(1, min(images, -(-sum(shown) // self._cores)))
        batches = plan(lengths, shown, token_budget=tokens, image_budget=images, padded=self._padded)
        return [_Pass(batch, shrink) for batch in batches]

    def _scores(self, chosen: Sequence[TokenizedRow]) -> list[RowScore]:
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
        failed: _Pass,
        rows: Sequence[TokenizedRow],
        results: dict[int, RowScore | RowFailure],
    ) -> list[_Pass]:
        """The passes to try instead of the one that failed."""
        batch, short = failed.batch, out_of_memory(error)
        if isinstance(error, torch.AcceleratorError) and not short:
            # An assertion on the card leaves its context unusable: only a new process helps.
            raise ModelError(f"The device failed: {_told(error)}.", "Start the process again.") from error
        if short:
            self.halve(failed.shrink)
            if len(batch) == 1:
                # It is not the row's fault: it must not end as one that cannot be scored.
                if failed.alone:
                    raise starved(error) from error
                return [_Pass(batch, self.shrink, apart=True, alone=True)]
        elif len(batch) == 1:
            log.warning("row cannot be scored", error=_told(error), tokens=len(rows[batch[0]].ids))
            results[batch[0]] = RowFailure(f"The model fails on this text or picture: {_told(error)}.")
            return []
        half = len(batch) // 2
        return [_Pass(part, self.shrink, apart=True) for part in (batch[:half], batch[half:])]

    def halve(self, shrink: int | None = None) -> None:
        """Memory has run out: halve the budgets.

        `shrink` is what they were divided by for the pass that failed: of several that failed side by side, only the
        first changes anything.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with self._turn:
            self._untroubled = 0
            if shrink is not None and shrink != self.shrink:
                return
            self.shrink = min(2 * self.shrink, self.token_budget)
            log.warning("memory ran out, batches become smaller", token_budget=self.token_budget // self.shrink)

    def _recover(self) -> None:
        if self.shrink == 1:
            return
        with self._turn:
            self._untroubled += 1
            if self._untroubled >= _RECOVER_AFTER:
                self.shrink = max(1, self.shrink // 2)
                self._untroubled = 0


def starved(error: BaseException) -> ModelError:
    """What to raise when there is not even the memory for one text or picture by itself."""
    return ModelError(
        f"There is not enough memory to score even one item: {_told(error)}.",
        "Nothing was lost: it is read again after a restart. Give the process more memory, or lower max_chart_pixels "
        "and score_cache_rows.",
    )


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # TorchScript says what went wrong in its last line; the others show where in the code.
    said = lines[-1].removeprefix("RuntimeError: ") if "TorchScript" in lines[0] else lines[0]
    return said[:160].rstrip(".") or type(error).__name__
