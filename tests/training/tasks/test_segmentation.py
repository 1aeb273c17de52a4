import math

import numpy as np
import pytest
import torch

from compresskit.distributed import Group
from compresskit.training.tasks.evaluation import METRICS, evaluate
from compresskit.training.tasks.losses import CrossEntropy, loss_for
from compresskit.training.tasks.segmentation import IGNORED, SegmentationTally

CPU = torch.device("cpu")


def drawn(count=3, classes=5, seed=0):
    """Scores and targets: class 2 is never true, class 3 never predicted, class 4 neither; some pixels are ignored."""
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(count, classes, 6, 7, generator=random, dtype=torch.float64)
    output[:, 3:] -= 50
    target = torch.tensor([0, 1, 3, IGNORED])[torch.randint(4, (count, 6, 7), generator=random)]
    return output, target


def by_hand(output, target):
    """Pixel by pixel."""
    output, target = output.numpy(), target.numpy()
    true, predicted, hits, loss, pixels = {}, {}, {}, 0.0, 0
    for n, y, x in np.ndindex(target.shape):
        scores, label = output[n, :, y, x], int(target[n, y, x])
        if label == IGNORED:
            continue
        guess = max(range(len(scores)), key=lambda c, s=scores: s[c])
        true[label] = true.get(label, 0) + 1
        predicted[guess] = predicted.get(guess, 0) + 1
        hits[label] = hits.get(label, 0) + (guess == label)
        loss += math.log(sum(math.exp(score) for score in scores)) - scores[label]
        pixels += 1

    def mean(ratio):
        return sum(ratio(c) for c in true) / len(true)

    return {
        "miou": mean(lambda c: hits[c] / (true[c] + predicted.get(c, 0) - hits[c])),
        "recall": mean(lambda c: hits[c] / true[c]),
        "precision": mean(lambda c: hits[c] / predicted[c] if c in predicted else 0.0),
        "accuracy": sum(hits.values()) / pixels,
        "loss": loss / pixels,
    }


def tally(batches):
    found = SegmentationTally(CPU)
    for output, target in batches:
        found.add(output, target)
    return found.figures(Group())


def test_figures_equal_a_loop_over_the_pixels():
    output, target = drawn()
    assert not (target == 2).any()
    assert (output.argmax(1) == 2).any()
    found = tally([(output, target)])
    assert found == pytest.approx(by_hand(output, target), rel=1e-12)
    assert list(found) == list(METRICS["segmentation"])
    assert next(iter(found)) == "miou"


def test_any_split_into_batches_gives_the_whole():
    output, target = drawn(count=6)
    batches = zip(output.split([1, 3, 2]), target.split([1, 3, 2]), strict=True)
    assert tally(batches) == pytest.approx(tally([(output, target)]), rel=1e-12)


def test_right_everywhere_is_one():
    _, target = drawn()
    output = torch.nn.functional.one_hot(target % IGNORED, 5).movedim(-1, 1).double()
    found = tally([(output, target)])
    assert [found[name] for name in ("miou", "recall", "precision", "accuracy")] == [1.0] * 4


def test_ignored_pixels_count_nowhere():
    output, target = drawn()
    expected = tally([(output, target)])
    output = torch.where((target == IGNORED)[:, None], -output, output)
    assert tally([(output, target)]) == expected


@pytest.mark.parametrize("batches", [[], [(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), IGNORED))]])
def test_nothing_to_count_is_refused(batches):
    with pytest.raises(ValueError, match="holds no"):
        tally(batches)


def test_processes_share_their_counts_even_if_one_has_seen_nothing(tmp_path):
    """As with fewer test images than processes. Gloo's sum would need tensors of one shape."""
    output, target = drawn()
    torch.multiprocessing.spawn(take_part, (tmp_path, output, target), nprocs=3)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(tally([(output, target)]), rel=1e-12)


def take_part(rank, folder, output, target):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=3)
    found = SegmentationTally(CPU)
    if rank < 2:
        share = slice(2) if rank == 0 else slice(2, 3)
        found.add(output[share], target[share])
    torch.save(found.figures(Group(rank, 3, rank)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_over_labelled_pixels(smoothing):
    output, target = drawn(classes=4)
    expected = []
    for n, y, x in np.ndindex(tuple(target.shape)):
        if target[n, y, x] != IGNORED:
            scores = output[n, :, y, x].tolist()
            norm = math.log(sum(map(math.exp, scores)))
            wanted = [smoothing / 4 + (1 - smoothing) * (c == int(target[n, y, x])) for c in range(4)]
            expected.append(sum(w * (norm - s) for w, s in zip(wanted, scores, strict=True)))
    loss = CrossEntropy(label_smoothing=smoothing)(output, target)
    assert float(loss) == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    if not smoothing:
        assert float(loss) == pytest.approx(by_hand(output, target)["loss"], rel=1e-12)


def test_without_labelled_pixels_the_loss_is_zero_and_so_are_its_gradients():
    output = drawn()[0].requires_grad_()
    loss = loss_for("segmentation", None)(output, torch.full((3, 6, 7), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not output.grad.any()


def test_an_image_of_class_255_is_no_ignored_pixel():
    output = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = -output.log_softmax(1)[0, IGNORED]
    assert float(CrossEntropy()(output[:1], torch.tensor([IGNORED]))) == pytest.approx(float(expected), rel=1e-12)


def test_evaluate_takes_a_network_and_a_split(tiny):
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(7, 2, 4, 4, generator=random)
    targets = torch.randint(3, (7, 4, 4), generator=random)
    network = torch.nn.Conv2d(2, 3, 1)
    found = evaluate(network, tiny.Split(inputs, targets), task="segmentation", batch_size=2)
    with torch.no_grad():
        assert found == pytest.approx(by_hand(network(inputs).double(), targets), rel=1e-6)  # float32 forward pass
