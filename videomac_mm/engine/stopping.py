"""Signals that ask a run to stop."""

import logging
import os
import signal
from collections.abc import Sequence
from types import FrameType

from mmengine.logging import print_log

EXIT_STOPPED = 75
"""Exit code of a run that stopped on request, after saving. (BSD's EX_TEMPFAIL: try again.)"""


class StopSignals:
    """Notes down the first signal, so that the run can finish its step and save.

    A second signal ends the process at once.

    Args:
        names: of the signals, such as ``'SIGTERM'``.

    Raises:
        ValueError: for a name that is no signal of this system.
    """

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if not hasattr(signal, name)]
        if unknown:
            raise ValueError(f'stop_signals must be names such as "SIGTERM", got {unknown}')
        self.numbers = [getattr(signal, name) for name in names]
        self.received: str | None = None
        self._before: dict[int, object] = {}
        self._process: int | None = None

    def install(self) -> None:
        """Listen. Outside of the main thread Python allows no handlers: then nothing happens."""
        self._process = os.getpid()
        self.received = None
        try:
            self._before = {n: signal.signal(n, self._note) for n in self.numbers}
        except ValueError:
            print_log(
                'Signals to stop are not heeded: the run is not in the main thread.',
                logger='current',
                level=logging.WARNING,
            )

    def uninstall(self) -> None:
        """Put back the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader: the main process ends it
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number).name
        # Workers may get the same signal and die of it. torch would raise an error for that in
        # the middle of the step; `CheckpointHook.after_data_failure` meets it while waiting.
        if hasattr(signal, 'SIGCHLD'):  # not on Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        print_log(
            f'{self.received} received: the run finishes its step, saves and stops. '
            'A second signal ends it at once.',
            logger='current',
            level=logging.WARNING,
        )
