"""How a user's mistake is told: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave. The message is one line: what was given, what is allowed, what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def nearest(given: str, allowed: list[str]) -> str:
    """`; did you mean 'x'?` for the closest allowed word, else an empty string."""
    match = get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main` and leave with its exit code; a `UserError` is printed as one line with code 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)
