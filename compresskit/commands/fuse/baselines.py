"""What is trained from random weights beside a fused network, and for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.session import Start
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


def trained_epochs(start: Start) -> int | None:
    """Those of the net that a trial starts from."""
    return epochs_in(start.checkpoint.history) if start.checkpoint else None


def epochs_in(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Epochs that a checkpoint's net was trained for, by the verbs in its history; None where one does not tell, none
    trained, or the first one started from weights of elsewhere."""
    if history and (history[0].get("parent") or (history[0]["recipe"].get("model") or {}).get("weights")):
        return None
    total = 0
    for entry in history:
        verb, recipe = str(entry["verb"]), entry["recipe"]
        own = recipe.get(verb) or {}
        if (verb == "expand" and (own.get("init_train") or own.get("compare"))) or own.get("retrain") is not None:
            return None  # trained twice, as the cells of a comparison say, or after as many steps as it took
        if verb != "expand" or "train" in own.get("stages", ()):
            total += int((recipe.get(_SECTION.get(verb, "")) or {}).get("epochs", 0))
    return total or None
