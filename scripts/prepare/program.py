"""What the scripts share: options, an HDF5 file that is written whole or not at all, and errors in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from compresskit.errors import CompresskitError, RunFolderError
from compresskit.storage.atomic import atomic_write

STOPPED = 130  # exit status after Ctrl-C, as shells have it


def parser(doc: str | None, source: str, name: str, samples: int) -> argparse.ArgumentParser:
    """doc: of the script. source: what is read. name: of the file that the recipe reads, in data/."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help=source)
    parser.add_argument("--out", type=Path, help=f"[data/{name}.h5; of a made set data/{name}-synthetic.h5]")
    parser.add_argument("--force", action="store_true", help="write over a file that exists")
    parser.add_argument("--synthetic", action="store_true", help="a made set of the same layout, without an archive")
    parser.add_argument("--samples", type=positive, default=samples, help=f"of the made set  [{samples}]")
    parser.set_defaults(name=name)
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, given {text}")
    return number


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace, h5py.File], None]) -> int:
    """The exit status of `work`, which fills the file; what is wrong is said in one line.

    Before `work`, `options.out` is set, and either `options.source` or `options.synthetic`.
    """
    options = parser.parse_args()
    if (options.source is None) != options.synthetic:
        parser.error("give either the archive, or --synthetic for a made set")
    made = "-synthetic" if options.synthetic else ""
    options.out = options.out or Path("data") / f"{options.name}{made}.h5"
    try:
        with _new_file(options) as file:
            file.attrs["source"] = "synthetic" if options.synthetic else options.source.name
            work(options, file)
        print(_told(options.out))
    except CompresskitError as error:
        print("error:", *str(error).split(), file=sys.stderr)  # HDF5 breaks lines
        return error.exit_status
    except KeyboardInterrupt:
        print(f"stopped; {options.out} was not written", file=sys.stderr)
        return STOPPED
    return 0


@contextmanager
def _new_file(options: argparse.Namespace) -> Iterator[h5py.File]:
    """Raises RunFolderError where the file exists, is what is read, or cannot be written."""
    out, source = options.out, options.source
    if os.path.exists(out):
        if source is not None and os.path.exists(source) and out.samefile(source):
            raise RunFolderError(f"{out}: it is what is read; write elsewhere with --out")
        if not options.force:
            raise RunFolderError(f"{out}: exists; write elsewhere with --out, or over it with --force")
    with atomic_write(out) as temporary, h5py.File(temporary, "w") as file:
        yield file


def _told(out: Path) -> str:
    """What the file holds."""
    lines: list[str] = []

    def tell(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            lines.append(f"  {name} {node.dtype} {node.shape}")

    with h5py.File(out) as file:
        file.visititems(tell)
    return "\n".join([f"{out}, {out.stat().st_size / 1e6:,.1f} MB:", *lines])
