"""The program: the installed command, `python -m compresskit`, and torchrun all start here."""

import sys

from compresskit import process


def main() -> None:
    """Entry point. Signals are seen to before anything that takes a while is imported."""
    process.prepare()
    try:
        with process.importing():
            from compresskit.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        process.leave(process.INTERRUPTED)
    except SystemExit as end:
        if process.is_asked_to_end() and isinstance(end.code, int):
            process.leave(end.code)  # at once: while Python tears itself down, another signal would count as a crash
        raise


if __name__ == "__main__":
    main()
