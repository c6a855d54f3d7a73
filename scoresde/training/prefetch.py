"""Values made ahead of their use, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Value = TypeVar("Value")
THREAD = "scoresde-prefetch"


def ahead(make: Callable[[int], Value], numbers: Iterable[int], n: int) -> Iterator[Value]:
    """make(k) for every number k in order, the next ``n`` being made while one is in use.

    They are made one after the other in a thread that ends with the iterator; n = 0 makes each
    when it is asked for. What ``make`` raises is raised where its value was due.
    """
    if n == 0:
        yield from map(make, numbers)
        return
    left = iter(numbers)
    with ThreadPoolExecutor(1, THREAD) as pool:
        waiting = deque(pool.submit(make, k) for k in islice(left, n))
        try:
            while waiting:
                value = waiting.popleft().result()
                waiting.extend(pool.submit(make, k) for k in islice(left, 1))
                yield value
        finally:
            pool.shutdown(cancel_futures=True)
