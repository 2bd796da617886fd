"""A scoring worker as a process of its own, with the tests' classifier: `python -m tests.end_to_end.worker_process`.

Settings come from the environment; the argument is how many seconds an item takes.
"""

import sys

from consumers.worker import run_worker
from monitor.settings import load_settings
from monitor.telemetry import configure_logging
from tests.consumers.word_scorer import WordScorer

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings, "worker")
    run_worker(settings, WordScorer(seconds=float(sys.argv[1])))
