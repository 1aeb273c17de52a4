"""One thread for each process where tests run in several: more would wait for each other (three times as long)."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy are loaded, so before any test
