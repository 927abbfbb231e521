"""How long a trial trains, by its rows and by what an iteration takes, and how far it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dns_onnx.config import Config

TRIAL_ITERATIONS, LEAST_ITERATIONS = 8000, 250  # where the settings do not say, within these:
EPOCHS = 60  # that a trial goes through the teaching rows at most
TRIAL_SECONDS = 1200  # that a trial may take; its iterations are halved until they fit
LONGER = 1  # times that a search doubles them; once more where such a trial still fits
LEAST_GROWTH = 1.2  # of the compression, from one trial to the next


def first_guess(config: Config, rows: int) -> int:
    """Iterations of a trial, before anything is known but the number of teaching rows."""
    if "iterations" in config.train.model_fields_set:
        return config.train.iterations
    epoch = math.ceil(rows / config.data.batch)
    return min(max(EPOCHS * epoch, LEAST_ITERATIONS), TRIAL_ITERATIONS)


def in_time(iterations: int, seconds: float) -> int:
    """Iterations of a trial that takes no more than TRIAL_SECONDS, if it can.

    Halved, not divided: a measurement that varies seldom says something else.
    """
    while iterations * seconds > TRIAL_SECONDS and iterations // 2 >= LEAST_ITERATIONS:
        iterations //= 2
    return iterations


def doublings(iterations: int, seconds: float) -> int:
    """How often a trial's iterations may double at a limit, by what one of them takes."""
    fits = seconds * iterations * 2 ** (LONGER + 1) <= TRIAL_SECONDS
    return LONGER + 1 if fits else LONGER


def next_growth(reached: Sequence[float], most: float) -> float:
    """The factor from the compression reached last to the next.

    reached: those within the budget so far, the first without training.  A net that went far
    without goes on in large steps, others in small ones, which grow while all goes well.
    """
    step = (reached[-1] / reached[-2]) ** 2 if len(reached) > 1 else math.sqrt(reached[-1])
    return min(max(step, LEAST_GROWTH), most)
