"""`python -m trainers <verb>`, which is also `lora-core <verb>`: Ctrl-C ends it with one line from its first moment."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run one verb; while its modules are still being imported, Ctrl-C ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from trainers.cli import main as run

    run()


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped by SIGINT.\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    main()
