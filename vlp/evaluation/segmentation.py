"""Zero-shot segmentation: patches against class names, mIoU on the samples' masks.

Shapes: B images, P = h x w patches, D joint width, C classes, H W pixels of a mask.
"""

import io
from collections.abc import Iterable, Iterator
from math import isqrt

import numpy as np
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from vlp.data.views import center_crop
from vlp.errors import UserError
from vlp.evaluation.encode import Subject, ValidationSample, read_table

MASK = "mask.png"
BACKGROUND, UNLABELLED = 0, 255
IGNORED = -1
LAYOUT = 'a JSON list of class names, ["cat", "dog", ...], entry i being mask value i+1'
MASK_LAYOUT = f"KEY.{MASK}, 8-bit with one channel: 0 is background and not scored, i+1 is class i, 255 is unlabelled"


@torch.inference_mode()
def evaluate_segmentation(subject: Subject) -> dict[str, dict[str, float] | int]:
    """`{patch feature: {mean_iou, pixel_accuracy: percent}}`, the number of `classes` and of `masks`.

    `patch_tokens` are the projected patch tokens as they are; `pooling_without_sink`, where the student has pooling,
    is the pooling of each patch alone [C34].
    """
    subject.require("segmentation", "image_projection", "text")
    names = read_classes(subject)
    masks = list(read_masks(subject.samples, len(names)))
    if not masks:
        raise UserError(f"segmentation: no validation sample has a mask; expected beside its picture is {MASK_LAYOUT}")
    classes_CD = class_embeddings(subject, names).to(subject.device)
    features = {"patch_tokens": lambda patches_PD: patches_PD}
    if hasattr(subject.model, "pooling"):
        features["pooling_without_sink"] = subject.model.pooling.patch_values
    result: dict[str, dict[str, float] | int] = {}
    for name, feature in features.items():
        scored = (
            (window_scores(feature(subject.patches_BPD[i].to(subject.device)), classes_CD), mask_HW)
            for i, mask_HW in masks
        )
        result[name] = segmentation_metrics(scored, len(names))
    return result | {"classes": len(names), "masks": len(masks)}


def window_scores(features_PD: Tensor, classes_CD: Tensor) -> Tensor:
    """[C, h, w] cosines of one square window's patch features with the class embeddings."""
    side = isqrt(len(features_PD))
    return (classes_CD @ normalize(features_PD, dim=-1).T).unflatten(1, (side, side))


def segmentation_metrics(scored: Iterable[tuple[Tensor, Tensor]], classes: int) -> dict[str, float]:
    """Percent, from pairs of scores [C, h, w] and mask int64 [H, W], of which one at a time is held.

    Scores are upsampled bilinearly to their mask, whatever windows they were put together from.
    """
    confusion_CC = torch.zeros(classes, classes, dtype=torch.int64)
    for scores_Chw, mask_HW in scored:
        confusion_CC += confusion(predict(scores_Chw, mask_HW.shape).cpu(), mask_HW, classes)
    return {"mean_iou": 100 * mean_iou(confusion_CC), "pixel_accuracy": 100 * pixel_accuracy(confusion_CC)}


def predict(scores_Chw: Tensor, size: tuple[int, int]) -> Tensor:
    """int64 [H, W]: the best class of each pixel. Classes lie innermost in memory: four times faster on a CPU."""
    scores_1Chw = scores_Chw[None].contiguous(memory_format=torch.channels_last)
    scores_CHW = interpolate(scores_1Chw, tuple(size), mode="bilinear", align_corners=False)[0]
    return scores_CHW.permute(1, 2, 0).argmax(-1)


def confusion(predicted_HW: Tensor, mask_HW: Tensor, classes: int) -> Tensor:
    """int64 [C, C] pixel counts: row is the true class, column the predicted one; `IGNORED` pixels do not count."""
    labelled = mask_HW != IGNORED
    pairs = mask_HW[labelled] * classes + predicted_HW[labelled]
    return pairs.bincount(minlength=classes * classes).view(classes, classes)


def mean_iou(confusion_CC: Tensor) -> float:
    """Intersection over union, averaged over the classes that are true or predicted somewhere, as mmseg's IoUMetric
    does: a class that is predicted but nowhere true counts as 0."""
    counts = confusion_CC.double()
    both_C = counts.diagonal()
    union_C = counts.sum(0) + counts.sum(1) - both_C
    return (both_C / union_C)[union_C > 0].mean().item()


def pixel_accuracy(confusion_CC: Tensor) -> float:
    """Share of the labelled pixels whose class is right."""
    return (confusion_CC.diagonal().sum() / confusion_CC.sum()).item()


def class_embeddings(subject: Subject, names: list[str]) -> Tensor:
    """[C, D]: the normalised mean of the normalised embeddings of CLIP's 80 ImageNet templates with the name."""
    texts = [template(name) for name in names for template in OPENAI_IMAGENET_TEMPLATES]
    texts_CND = normalize(subject.encode_texts(texts), dim=-1).unflatten(0, (len(names), -1))
    return normalize(texts_CND.mean(1), dim=-1)


def read_classes(subject: Subject) -> list[str]:
    """The class names, in the order of the mask values."""
    names = read_table(subject.recipe, "classes", LAYOUT)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"evaluation.classes: given {str(names)[:40]}; expected is {LAYOUT}")
    if len(names) >= UNLABELLED:
        raise UserError(f"evaluation.classes: {len(names)} classes; an 8-bit mask holds at most {UNLABELLED - 1}")
    return names


def read_masks(samples: list[ValidationSample], classes: int) -> Iterator[tuple[int, Tensor]]:
    """The samples that have a mask: their number and int64 [H, W] class numbers or `IGNORED`, of the part of the
    picture that the model sees.

    Raises:
        UserError: for a mask that does not decode, has colours, or names a class that there is not.
    """
    for i, sample in enumerate(samples):
        if MASK not in sample.files:
            continue
        try:
            image = Image.open(io.BytesIO(sample.files[MASK]))
            values = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{sample.key}.{MASK} does not decode ({error}); expected is {MASK_LAYOUT}") from None
        if values.ndim != 2 or values.dtype != np.uint8:
            raise UserError(f"{sample.key}.{MASK} is a picture of mode {image.mode}; expected is {MASK_LAYOUT}")
        ignored = (values == BACKGROUND) | (values == UNLABELLED)
        if values[~ignored].max(initial=0) > classes:
            raise UserError(
                f"{sample.key}.{MASK} has the value {values[~ignored].max()} and classes.json {classes} names; {LAYOUT}"
            )
        crop, (height, width) = center_crop(*image.size), values.shape
        seen = (
            slice(round(crop.top * height), round(crop.bottom * height)),
            slice(round(crop.left * width), round(crop.right * width)),
        )
        yield i, torch.from_numpy(np.where(ignored, IGNORED, values.astype(np.int64) - 1)[seen])
