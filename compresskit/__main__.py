"""The program: the installed command, `python -m compresskit`, and torchrun all start here."""

from compresskit import process


def main() -> None:
    """Entry point. Signals are seen to before anything that takes a while is imported."""
    process.prepare()
    try:
        from compresskit.cli import main as run

        run()
    except KeyboardInterrupt:
        process.leave(process.INTERRUPTED)


if __name__ == "__main__":
    main()
