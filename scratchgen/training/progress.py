"""What a long loop shows, and how it is asked to stop."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

SILENT_SECONDS = 30.0


def say(*words) -> None:
    """A line for people; results for programs go to standard output alone."""
    print(*words, file=sys.stderr, flush=True)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that fills with the signals received, instead of an exception in mid-update."""
    received: list[int] = []

    def note(number: int, frame) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers, and only it receives signals
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(start: int, stop: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar with an ETA on a terminal; elsewhere a line every tenth of the way, or half minute."""
    if quiet:
        yield lambda done, text: None
    elif sys.stderr.isatty():
        with tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True) as bar:

            def move(done: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(done - bar.n)

            yield move
    else:
        interval, began = max(1, stop // 10), time.monotonic()
        said = began

        def tell(done: int, text: str) -> None:
            nonlocal said
            now = time.monotonic()
            if done % interval == 0 or done == stop or now - said > SILENT_SECONDS:
                said = now
                print(
                    f"step {done}/{stop}  {now - began:.0f} s  {text}", file=sys.stderr, flush=True
                )

        yield tell
