"""Options in words."""

from compresskit.options import changed
from compresskit.training.optimization.optimizers import SGD, Adam
from compresskit.training.optimization.schedules import MultiStep
from compresskit.training.options import Training


def test_what_changed_is_named_by_its_key():
    one = Training(schedule=MultiStep(milestones=(2, 3)), monitor="loss", optimizer=SGD(lr=0.1))
    other = Training(epochs=4, schedule=MultiStep(milestones=(2, 5)), optimizer=Adam(lr=0.1), compile=True)
    assert changed(other, one) == [
        *("epochs 4", "optimizer adam lr 0.1", "schedule.milestones [2, 5]", "compile True", "monitor none")
    ]
    assert changed(one, one) == []
