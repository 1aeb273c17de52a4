"""What scripts that prepare data do with what they cannot use."""

from pathlib import Path
from subprocess import CompletedProcess


def refused(done: CompletedProcess[str], told: str, folder: Path) -> None:
    """One line of error that says `told`, and no part of a file below `folder`."""
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(folder.glob("data/*")), "a part of the file was left"
