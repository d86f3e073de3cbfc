"""Segmentation: mIoU and upsampling against naive twins, masks as they come, and the whole task."""

import io
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from open_clip import OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from vlp.errors import UserError
from vlp.evaluation.encode import Subject, ValidationSample
from vlp.evaluation.segmentation import (
    IGNORED,
    class_embeddings,
    confusion,
    evaluate_segmentation,
    mean_iou,
    pixel_accuracy,
    predict,
    read_classes,
    read_masks,
    segmentation_metrics,
)
from vlp.models.pooling import TextConditionedPooling


def naive_iou(predicted: list[int], truth: list[int], classes: int) -> float:
    """Sets of pixels, class by class."""
    scored = [n for n, value in enumerate(truth) if value != IGNORED]
    ious = []
    for c in range(classes):
        said, true = ({n for n in scored if values[n] == c} for values in (predicted, truth))
        if said | true:
            ious.append(len(said & true) / len(said | true))
    return sum(ious) / len(ious)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=12), min_size=1))
def test_streamed_mean_iou_equals_the_naive_twin(pictures: list[list[tuple[int, int]]]) -> None:
    counts = torch.zeros(6, 6, dtype=torch.int64)
    for pixels in pictures:
        predicted, truth = torch.tensor(pixels).T
        counts += confusion(predicted[None], truth[None], 6)
    predicted, truth = map(list, zip(*[pixel for pixels in pictures for pixel in pixels], strict=True))
    if any(value != IGNORED for value in truth):
        assert mean_iou(counts) == pytest.approx(naive_iou(predicted, truth, 6))


def test_a_class_that_is_only_predicted_counts_as_zero_and_an_absent_one_not_at_all() -> None:
    counts = confusion(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 0, IGNORED]]), classes=4)
    assert counts[0].tolist() == [2, 1, 0, 0], "row is the truth"
    assert mean_iou(counts) == pytest.approx((2 / 3 + 0) / 2)
    assert pixel_accuracy(counts) == pytest.approx(2 / 3)


def naive_upsampled(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between patch centres, pixel by pixel."""
    classes, h, w = scores.shape
    result = np.empty((classes, height, width))
    for row in range(height):
        for column in range(width):
            y = np.clip((row + 0.5) * h / height - 0.5, 0, h - 1)
            x = np.clip((column + 0.5) * w / width - 0.5, 0, w - 1)
            top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, x - left
            above = (1 - dx) * scores[:, top, left] + dx * scores[:, top, right]
            under = (1 - dx) * scores[:, below, left] + dx * scores[:, below, right]
            result[:, row, column] = (1 - dy) * above + dy * under
    return result


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((3, 2), (13, 17)), ((1, 1), (5, 4))])
def test_prediction_is_the_best_class_of_bilinear_scores(grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(5, *grid)))
    expected = naive_upsampled(scores.numpy(), *size).argmax(0)
    assert predict(scores, size).tolist() == expected.tolist()


def test_right_scores_give_100_and_wrong_ones_0() -> None:
    mask = torch.zeros(16, 16, dtype=torch.int64)
    mask[:, 8:] = 1
    right = torch.tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
    assert segmentation_metrics([(right, mask)], 2) == {"mean_iou": 100, "pixel_accuracy": 100}
    assert segmentation_metrics([(1 - right, mask)], 2) == {"mean_iou": 0, "pixel_accuracy": 0}


def test_a_patch_alone_without_sink_gives_the_same_for_every_text() -> None:
    """With one key the softmax is 1: docs/method.md's identity that `patch_values` rests on."""
    torch.manual_seed(0)
    pooling = TextConditionedPooling(16, 4).double().requires_grad_(False)
    patches, texts = torch.randn(2, 3, 16).double(), torch.randn(1, 5, 16).double()
    for p in range(3):
        keys, values = (part[:, :, :-1] for part in pooling.keys_values(patches[:, p : p + 1]))
        alone = pooling.output(pooling.attend(pooling.queries(texts), (keys, values)))
        torch.testing.assert_close(alone, pooling.patch_values(patches)[:, p : p + 1].expand(-1, 5, -1))


def sample_with(mask: np.ndarray) -> ValidationSample:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return ValidationSample("key", np.zeros((3, 8, 8), np.uint8), {}, {"mask.png": stream.getvalue()})


def test_masks_are_class_numbers_of_the_centre_square() -> None:
    values = np.array([[9, 0, 1, 255, 9], [9, 2, 3, 1, 9], [9, 0, 0, 2, 9]], np.uint8)
    bare = ValidationSample("bare", np.zeros((3, 8, 8), np.uint8), {}, {})
    ((number, mask),) = read_masks([bare, sample_with(values)], classes=9)
    assert number == 1
    assert mask.tolist() == [[-1, 0, -1], [1, 2, 0], [-1, -1, 1]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[4]], np.uint8), "has the value 4 and classes.json 3 names"),
        (np.zeros((2, 2, 3), np.uint8), "mode RGB.*8-bit"),
    ],
)
def test_a_mask_of_another_form_is_one_line(mask: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_masks([sample_with(mask)], classes=3))


def test_a_mask_that_does_not_decode_is_one_line() -> None:
    sample = sample_with(np.zeros((2, 2), np.uint8))
    sample.files["mask.png"] = sample.files["mask.png"][:40]
    with pytest.raises(UserError, match=r"key.mask.png does not decode"):
        list(read_masks([sample], classes=3))


def test_a_class_is_the_normalised_mean_of_its_normalised_templates(subject: Subject) -> None:
    found = class_embeddings(subject, ["cat", "traffic light"])
    for row, name in zip(found, ["cat", "traffic light"], strict=True):
        total = torch.zeros(found.shape[1], dtype=torch.float64)
        for template in OPENAI_IMAGENET_TEMPLATES:
            text = subject.encode_texts([template(name)])[0].double()
            total += text / text.norm()
        torch.testing.assert_close(row.double(), total / total.norm(), atol=1e-5, rtol=0)


def test_the_task_reports_both_patch_features(subject: Subject) -> None:
    result = evaluate_segmentation(subject)
    assert list(result) == ["patch_tokens", "pooling_without_sink", "classes", "masks"]
    assert result["masks"] == len(subject.samples)
    for metrics in (result["patch_tokens"], result["pooling_without_sink"]):
        assert 0 <= metrics["mean_iou"] <= 100
        assert 0 <= metrics["pixel_accuracy"] <= 100


def test_patches_that_show_their_class_are_segmented(subject: Subject) -> None:
    """Patch tokens replaced by the embedding of the class that fills most of each patch beat chance by far."""
    names = read_classes(subject)
    classes_CD = class_embeddings(subject, names)
    patches_BPD = torch.zeros_like(subject.patches_BPD)
    for i, mask in read_masks(subject.samples, len(names)):
        cells = mask.unfold(0, 16, 16).unfold(1, 16, 16).flatten(0, 1).flatten(1)
        patches_BPD[i] = torch.stack(
            [classes_CD[cell[cell >= 0].mode().values] if (cell >= 0).any() else -classes_CD.mean(0) for cell in cells]
        )
    result = evaluate_segmentation(replace(subject, patches_BPD=patches_BPD))
    assert result["patch_tokens"]["pixel_accuracy"] > 60
