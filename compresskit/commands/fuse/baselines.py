"""What is trained from random weights beside a fused network, and for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.errors import RecipeError
from compresskit.training.optimization.schedules import MultiStep, Schedule
from compresskit.training.optimization.schedules import Step as StepSchedule
from compresskit.training.options import Training

_SECTION = {"train": "train", "expand": "train", "finetune": "finetune"}  # whose epochs a verb trains for


def baselines(options: FuseAndRetrain, trained: int | None, step: int) -> dict[str, Training]:
    """By name, the training of each network of random weights beside step `step`, counted from 1.

    trained: epochs of the net that is fused; where nothing tells them, `whole` raises RecipeError.
    """
    if isinstance(options.baseline, Training):
        return {"random": options.baseline}
    found = {}
    if options.baseline in ("random", "both"):
        assert options.retrain is not None
        found["random"] = options.retrain
    if options.baseline in ("whole", "both"):
        assert options.retrain is not None
        if trained is None:
            raise RecipeError(
                f"fuse.baseline: {options.baseline} trains for as long as the net that is fused was trained, which its "
                "checkpoint does not tell; give settings instead, such as baseline: {epochs: 40}"
            )
        found["whole"] = lengthened(options.retrain, trained + step * options.retrain.epochs)
    return found


def lengthened(training: Training, epochs: int) -> Training:
    """The same over `epochs`: schedules that name epochs name later ones in proportion; a warm-up stays as long."""
    return replace(training, epochs=epochs, schedule=_stretched(training.schedule, epochs / training.epochs))


def _stretched(schedule: Schedule, factor: float) -> Schedule:
    if isinstance(schedule, MultiStep):
        return replace(schedule, milestones=tuple(dict.fromkeys(round(m * factor) for m in schedule.milestones)))
    if isinstance(schedule, StepSchedule):
        return replace(schedule, step_size=max(1, round(schedule.step_size * factor)))
    return schedule


def epochs_in(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Epochs that a checkpoint's net was trained for, by the verbs in its history; None where one does not tell, or
    none trained."""
    total = 0
    for entry in history:
        verb, recipe = str(entry["verb"]), entry["recipe"]
        section = recipe.get(_SECTION.get(verb, ""))
        if section is not None:
            total += int(section["epochs"])
        elif (recipe.get(verb) or {}).get("retrain") is not None:  # after as many steps as it took
            return None
    return total or None
