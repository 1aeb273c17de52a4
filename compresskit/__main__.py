"""`python -m compresskit` and `torchrun -m compresskit` run the command line."""

from compresskit.cli import main

if __name__ == "__main__":
    main()
