"""Runs of verbs on the CPU and on a device, and the rows that compare them."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu.checks import DATA, LATENCY, LOSSES, NETS, ROUNDED, SHARE, TRAIN, Check
from gpu.differences import DIFFERENCES, latency_above, losses_differ
from typer.testing import CliRunner

from compresskit.cli.app import app


class Runs:
    """Runs of verbs in one folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device

    def recipe(self, check: Check, device: str) -> Path:
        path = self.folder / f"{slug(check.name)}-{device}.yaml"
        sections = json.loads(json.dumps(check.sections))
        if check.device_only and device == "cpu" and self.device != "cpu":
            sections["train"]["precision"] = "float32"
        options = {key: without_none(value) for key, value in sections.items()}
        path.write_text(yaml.safe_dump({"model": NETS[check.net], "data": DATA, **options}))
        return path

    def command(self, check: Check, device: str) -> list[str]:
        parent = [] if check.verb in ("train", "expand") else ["--checkpoint", str(self.parent(check.net))]
        given = [str(self.recipe(check, device)), *parent]
        command = [sys.executable, "-m", "compresskit", check.verb, *given, "--device", device]
        return [*command, "--out", str(self.out(check, device)), "--force"]

    def out(self, check: Check, device: str) -> Path:
        return self.folder / f"{slug(check.name)}-{device}"

    def parent(self, net: str) -> Path:
        return self.folder / f"parent-{net}-cpu"

    def run(self, check: Check, device: str) -> tuple[Path, float]:
        """The folder of a finished run, and its seconds. Raises RuntimeError with what it said."""
        started = time.monotonic()
        torch.backends.cudnn.allow_tf32 = check.tf32
        done = CliRunner().invoke(app, self.command(check, device)[3:])
        if done.exit_code:
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise RuntimeError(f"on {device}: " + "".join(traceback.format_exception(done.exception))[-600:])
            raise RuntimeError(f"on {device}: {(done.stderr.strip() or done.stdout.strip())[-600:]}")
        return self.out(check, device), time.monotonic() - started

    def make_parents(self, checks: list[Check]) -> None:
        """The nets that the checks start from, trained on the CPU."""
        asked = {check.net for check in checks if check.verb not in ("train", "expand")}
        nets = [
            Check(f"parent-{net}", "train", net, {"train": TRAIN}) for net in NETS if net in asked and available(net)
        ]
        for check in nets:
            self.run(check, "cpu")

    def compared(self, check: Check) -> dict[str, Any]:
        """A row: how much the device's run differs from the CPU's, and whether that is too much."""
        if not available(check.net):
            return {"check": check.name, "skipped": "needs timm"}
        try:
            (one, seconds), (other, on_device) = self.run(check, "cpu"), self.run(check, self.device)
            difference = DIFFERENCES[check.of](one, other)
        except RuntimeError as error:
            return {"check": check.name, "failed": str(error)}
        except Exception:  # one check that breaks must not hide what the others find
            return {"check": check.name, "failed": traceback.format_exc()[-600:]}
        taken = {"s_cpu": round(seconds, 1), "s_device": round(on_device, 1)}
        return judged(check.name, check.of, difference, check.tolerance) | taken


def judged(name: str, of: str, difference: float, tolerance: float) -> dict[str, Any]:
    row = {"check": name, "of": of, "difference": difference, "tolerance": tolerance}
    return row if difference <= tolerance else row | {"failed": f"{difference:.1e} > {tolerance:.0e}"}


def latency_reached(runs: Runs) -> dict[str, Any]:
    """A target of latency on the device alone: the share above what was asked for."""
    try:
        folder, _ = runs.run(LATENCY, runs.device)
    except RuntimeError as error:
        return {"check": LATENCY.name, "failed": str(error)}
    return judged(LATENCY.name, LATENCY.of, latency_above(folder, SHARE), LATENCY.tolerance)


def killed_and_resumed(runs: Runs) -> dict[str, Any]:
    """A training killed in its second epoch and resumed, against one that went through."""
    name, sections = "train, killed and resumed", {"train": TRAIN | {"epochs": 3}}
    whole, cut = (Check(f"{name}, {way}", "train", "resnet", sections, tf32=True) for way in ("whole", "in two"))
    try:
        through, _ = runs.run(whole, runs.device)
    except RuntimeError as error:
        return {"check": name, "failed": str(error)}
    command, folder = runs.command(cut, runs.device), runs.out(cut, runs.device)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("**/state.pt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return {"check": name, "failed": "the run ended before it could be killed"}
    command = [word for word in command if word != "--force"] + ["--resume"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"check": name, "failed": done.stderr[-600:]}
    return judged(name, "losses", losses_differ(through, folder), LOSSES)


def two_processes(runs: Runs) -> dict[str, Any]:
    """torchrun with NCCL, where there are two GPUs."""
    name = "train, two GPUs"
    if runs.device == "cpu" or torch.cuda.device_count() < 2:
        return {"check": name, "skipped": "needs two GPUs"}
    one, two = (Check(f"{name}, {n}", "train", "resnet", {"train": TRAIN}, tf32=True) for n in (1, 2))
    command = runs.command(two, runs.device)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command[1:]], capture_output=True, text=True)
    if done.returncode:
        return {"check": name, "failed": done.stderr[-600:]}
    alone, _ = runs.run(one, runs.device)
    return judged(name, "losses", losses_differ(alone, runs.out(two, runs.device)), ROUNDED)


def available(net: str) -> bool:
    return net != "vit" or importlib.util.find_spec("timm") is not None


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
