"""Boxes for the phrases of a picture, by the open-vocabulary detector OWLv2 [docs/method.md 3, Data]."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

from vlp.annotation.phrases import load_phrase_model, noun_phrases
from vlp.annotation.shards import Annotate, Item
from vlp.data.shards import BadSample
from vlp.data.views import decode_image
from vlp.errors import UserError
from vlp.settings import Count, DataSettings, FieldMap, Positive, Probability, Section, Share

if TYPE_CHECKING:
    from spacy.language import Language
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

TRAINED_SCORE: float = DataSettings.model_fields["box_score"].default


class RegionSettings(Section):
    """What decides which regions a picture gets. The defaults are tools/prepare_regions.py's."""

    model: str
    nlp: str
    fields: FieldMap
    captions: list[Literal["long", "short", "raw"]] = Field(min_length=1)
    """Phrases are read from the captions of the first of these kinds that the picture has."""
    index: Count | None
    """Of them only this one, counted from 0."""
    max_phrases: Positive
    prompt: str
    """A query, with {} for the phrase. In the paper the phrases themselves are the queries."""
    score: Probability
    """Regions above it are kept."""
    nms: Share
    """Of two boxes of one phrase that overlap by more than this IoU, the better one is kept."""
    max_per_phrase: Positive
    max_regions: Positive
    replace: bool
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    """auto: float32 on the CPU, else float16, as bfloat16 would have boxes in steps of 1/256."""

    @field_validator("prompt")
    @classmethod
    def _names_the_phrase(cls, prompt: str) -> str:
        if "{}" not in prompt:
            raise ValueError("a query has {} where the phrase belongs, as 'a photo of a {}'")
        return prompt

    @field_validator("fields")
    @classmethod
    def _has_a_place_for_regions(cls, fields: FieldMap) -> FieldMap:
        if not fields.regions:
            raise ValueError("name the key that gets the regions, as regions=boxes")
        return fields


Region = dict[str, Any]
"""`box` in fractions of the picture (x0, y0, x1, y1; origin top left), `phrase` and `score`."""


def check_models(settings: RegionSettings) -> None:
    """Raises `UserError` when the phrase model is not installed or the detector is no OWLv2 or cannot be reached."""
    load_phrase_model(settings.nlp)
    transformers = _transformers()
    try:
        kind = transformers.AutoConfig.from_pretrained(settings.model).model_type
    except (OSError, ValueError) as error:
        raise _no_model(settings.model, error) from None
    if kind != "owlv2":
        raise UserError(f"--model {settings.model} is a model of the kind {kind}; give one of the kind owlv2")


def region_annotator(settings: RegionSettings, device: str = "auto") -> Annotate:
    """What gives samples their regions. Loads the models. Raises `UserError` when they cannot be loaded.

    Counts, among others, `regions` and how many of them training uses by default (`regions_from_0.3`).
    """
    nlp = load_phrase_model(settings.nlp)
    model, processor = load_detector(settings.model, pick_device(device), settings.precision)
    return partial(_annotate, nlp, model, processor, settings)


def _annotate(
    nlp: "Language",
    model: "Owlv2ForObjectDetection",
    processor: "Owlv2Processor",
    settings: RegionSettings,
    items: list[Item],
) -> Counter[str]:
    counts: Counter[str] = Counter()
    field = settings.fields.regions
    new = [item for item in items if settings.replace or not isinstance(item.annotations.get(field), list)]
    counts["kept"] = len(items) - len(new)
    captions = [_captions(item, settings) for item in new]
    all_phrases = noun_phrases(nlp, captions, settings.max_phrases)
    seen: list[tuple[Item, Image.Image, list[str]]] = []
    for item, texts, found in zip(new, captions, all_phrases, strict=True):
        if not found:
            counts["without_phrase" if texts else "without_caption"] += 1
            continue
        try:
            seen.append((item, _picture(item, processor), found))
        except BadSample as reason:
            counts[str(reason)] += 1
    if seen:
        annotated, pictures, phrases = (list(column) for column in zip(*seen, strict=True))
        for item, regions in zip(annotated, detect(model, processor, pictures, phrases, settings), strict=True):
            item.annotations[field] = regions
            counts["with_regions" if regions else "without_regions"] += 1
            counts["regions"] += len(regions)
            counts[f"regions_from_{TRAINED_SCORE}"] += sum(region["score"] >= TRAINED_SCORE for region in regions)
        counts["phrases"] += sum(map(len, phrases))
    return +counts


def load_detector(
    name: str, device: torch.device, precision: str = "auto"
) -> tuple["Owlv2ForObjectDetection", "Owlv2Processor"]:
    """OWLv2 and its processor by hub name or from a folder. Raises `UserError`."""
    transformers = _transformers()
    if precision == "auto":
        precision = "float32" if device.type == "cpu" else "float16"
    try:
        model = transformers.Owlv2ForObjectDetection.from_pretrained(name)
        processor = transformers.Owlv2Processor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from None
    return model.eval().to(device, getattr(torch, precision)), processor


def pick_device(name: str) -> torch.device:
    """The device of this name; auto is the accelerator, else the CPU. Raises `UserError` where there is none."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: torch sees none here; give --device cpu or auto") from None


@torch.inference_mode()
def detect(
    model: "Owlv2ForObjectDetection",
    processor: "Owlv2Processor",
    pictures: list[Image.Image],
    phrases: list[list[str]],
    settings: RegionSettings,
) -> list[list[Region]]:
    """The regions of each picture, best first, for its own phrases (one at least).

    Each place of OWLv2's grid proposes one box, for the phrase that fits it best, as transformers reads the outputs:
    "woman" gets no weaker copy of the box of "man".
    """
    pixels = processor.image_processor(pictures, return_tensors="pt", device=model.device).pixel_values
    queries = [[settings.prompt.replace("{}", phrase) for phrase in found] for found in phrases]
    ids, mask = encode_queries(processor.tokenizer, queries, model.config.text_config.max_position_embeddings)
    outputs = model(
        pixel_values=pixels.to(model.dtype), input_ids=ids.to(model.device), attention_mask=mask.to(model.device)
    )
    outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
    sizes = [(picture.height, picture.width) for picture in pictures]
    results = processor.post_process_grounded_object_detection(outputs, threshold=settings.score, target_sizes=sizes)
    return [
        _regions(result, found, height, width, settings)
        for result, found, (height, width) in zip(results, phrases, sizes, strict=True)
    ]


def encode_queries(tokenizer: Any, queries: list[list[str]], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of all queries of B pictures, each [B * Q, L] with Q the most queries of one.

    Missing queries are rows of zeros, which OWLv2 leaves out; the processor's own padding, a blank query, competes
    with the phrases for boxes. Queries are cut at `length` tokens, the text tower's context.
    """
    encoded = tokenizer(
        [query for own in queries for query in own],
        padding=True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    counts = [len(own) for own in queries]
    ids = pad_sequence(encoded.input_ids.split(counts), batch_first=True)  # [B, Q, L]
    mask = pad_sequence(encoded.attention_mask.split(counts), batch_first=True, padding_value=1)
    return ids.flatten(0, 1), mask.flatten(0, 1)


def _regions(
    result: dict[str, Tensor], phrases: list[str], height: int, width: int, settings: RegionSettings
) -> list[Region]:
    """Regions of one picture from boxes [N, 4] in its pixels, scores [N] and labels [N] (indices of `phrases`)."""
    boxes = result["boxes"].cpu() / torch.tensor([width, height, width, height])
    boxes = (boxes.clamp(0, 1) * 10_000).round() / 10_000
    scores, labels = result["scores"].cpu(), result["labels"].cpu()
    solid = ((boxes[:, 2:] > boxes[:, :2]).all(1)).nonzero()[:, 0]  # others lie in the padding
    kept = solid[batched_nms(boxes[solid], scores[solid], labels[solid], settings.nms)]
    regions: list[Region] = []
    taken: Counter[str] = Counter()
    for i in kept.tolist():  # best first
        phrase = phrases[int(labels[i])]
        if taken[phrase] < settings.max_per_phrase and len(regions) < settings.max_regions:
            taken[phrase] += 1
            box = [round(edge, 4) for edge in boxes[i].tolist()]
            regions.append({"box": box, "phrase": phrase, "score": round(float(scores[i]), 4)})
    return regions


def _captions(item: Item, settings: RegionSettings) -> list[str]:
    captions = item.captions(settings.fields)
    found = next((captions[kind] for kind in settings.captions if captions[kind]), [])
    return found if settings.index is None else found[settings.index : settings.index + 1]


def _picture(item: Item, processor: "Owlv2Processor") -> Image.Image:
    """The picture, upright, no larger than the square that the detector sees: the processor would pad it, even a
    panorama, to a square of floats first. Raises `BadSample`."""
    side = processor.image_processor.size["height"]
    picture = decode_image(item.image, side)
    picture.thumbnail((side, side))
    return picture


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("boxes want transformers: pip install -e '.[annotate]'") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _no_model(name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(f"--model {name} cannot be loaded ({reason}); give a folder or a hub name of an OWLv2 checkpoint")
