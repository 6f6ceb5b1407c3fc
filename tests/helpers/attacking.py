"""Running checks on what Hypothesis draws, the same each time."""

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy


def rounds(strategy: SearchStrategy, examples: int, check: Callable[[Any], None]) -> Iterator[int]:
    """Check so many examples each time that the next number is asked for; each number has its own examples."""
    number = 0
    while True:
        _check_examples(strategy, examples, check, number)
        yield number
        number += 1


def _check_examples(strategy: SearchStrategy, examples: int, check: Callable[[Any], None], number: int) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        # What a server does with a smaller example says little once it has met a larger one.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(strategy)
    def check_one(example):
        check(example)

    check_one()
