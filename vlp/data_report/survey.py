"""What is in the samples: every one is made as training makes it, and what is found is counted with an example."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlp.data import tokens
from vlp.data.batch import DataNeeds
from vlp.data.captions import CaptionRequest, caption_fields, read_captions, sample_captions, split_sentences
from vlp.data.sample import Sample, make_sample
from vlp.data.shards import BadSample, image_bytes, read_annotations
from vlp.data_report.problems import (
    caption_problems,
    picture_problems,
    picture_size,
    question_problem,
    region_problem,
)
from vlp.data_report.reading import Drawn, training_rng
from vlp.recipe import Recipe

SPLIT = ("diverse", "sentence", "passage")
"""Kinds of captions for which sentences are split."""


@dataclass
class Seen:
    """How often a problem was seen, and where first."""

    count: int = 0
    key: str = ""
    shard: str = ""
    value: str = ""


@dataclass
class Survey:
    """Counts over the samples that were looked at. Subjects are what problems are problems of, as in `regions`."""

    recipe: Recipe
    needs: DataNeeds
    samples: int = 0
    usable: int = 0
    annotated: int = 0
    """Samples whose JSON can be read."""
    complete: int = 0
    """Samples with a picture and JSON that can be read; the usable ones have the captions too."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Of the samples that are not usable, by reason."""
    problems: dict[tuple[str, str], Seen] = field(default_factory=dict)
    """By problem and subject."""
    of: Counter[str] = field(default_factory=Counter)
    """Cases of each subject."""
    served: Counter[str] = field(default_factory=Counter)
    """Samples that have something for a caption request (of the annotated) or a task (of the complete), by its name."""
    lacking: dict[str, Seen] = field(default_factory=dict)
    """The first of the others."""
    json_keys: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Keys of the JSON, and whether they hold `text`, `objects` or `else`."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Tokens of the captions drawn for each request, start and end token included, before the cut."""
    sentences: dict[str, list[int]] = field(default_factory=dict)
    """Sentences of each caption that is split, by field."""
    pictures: list[tuple[int, int]] = field(default_factory=list)
    """Width and height."""
    texts: dict[str, dict[str, Seen]] = field(default_factory=dict)
    """How many samples have a caption, by field and caption."""
    same_pictures: dict[bytes, Seen] = field(default_factory=dict)
    same_keys: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all_tasks = replace(
            self.needs, tasks=tuple(replace(task, share=1.0) for task in self.needs.tasks), view_share=0.0
        )
        kinds = [kind for request in self.needs.captions for kind in request.fields]
        kinds += [kind for task in self.needs.tasks if task.task == "caption" for kind in caption_fields(task.captions)]
        self.kinds = tuple(dict.fromkeys(kinds))
        """Caption fields that the recipe reads."""
        self.split = {kind for request in self.needs.captions if request.kind in SPLIT for kind in request.fields}
        self.read = {task.field for task in self.needs.tasks}
        self.lengths = {request.name: [] for request in self.needs.captions}

    def add(self, drawn: Drawn) -> None:
        """Take in a sample."""
        self.samples += 1
        self.of["samples"] += 1
        if drawn.turn == 0:
            self._repeats(self.same_keys, drawn.key, drawn, drawn.key)
        self._look_at_picture(drawn)
        try:
            annotations = read_annotations(drawn.raw)
        except BadSample:
            pass
        else:
            self.annotated += 1
            self._look_at_annotations(annotations, drawn)
        try:
            sample = make_sample(drawn.raw, self.all_tasks, self.recipe, 0, training_rng(self.recipe, drawn))
            self.usable += 1
        except BadSample as reason:
            self.skipped[str(reason)] += 1
            self.note(str(reason), "samples", drawn)
            sample = self._without_captions(drawn) if str(reason) == "no_caption" else None
        if sample is not None:
            self.complete += 1
            self._look_at_prompts(sample, drawn)

    def _without_captions(self, drawn: Drawn) -> Sample | None:
        """The sample with what else it has. What else is wrong with it is noted too."""
        needs = replace(self.all_tasks, captions=())
        try:
            return make_sample(drawn.raw, needs, self.recipe, 0, training_rng(self.recipe, drawn))
        except BadSample as reason:
            self.note(str(reason), "samples", drawn)
            return None

    def note(self, problem: str, subject: str, drawn: Drawn, value: Any = "") -> None:
        """Count a problem of this sample; the first one is its example."""
        if (problem, subject) not in self.problems:
            self.problems[problem, subject] = Seen(0, drawn.key, drawn.shard, str(value))
        self.problems[problem, subject].count += 1

    def _look_at_picture(self, drawn: Drawn) -> None:
        try:
            data = image_bytes(drawn.raw)
        except BadSample:
            return
        size = picture_size(data)
        if size is None:
            return
        self.pictures.append(size)
        self.of["pictures"] += 1
        for problem in picture_problems(*size, self.recipe.model.vision.image_size):
            self.note(problem, "pictures", drawn, "{} x {} pixels".format(*size))
        if drawn.turn == 0:
            self._repeats(self.same_pictures, hashlib.blake2b(data, digest_size=16).digest(), drawn)

    def _look_at_annotations(self, annotations: Mapping[str, Any], drawn: Drawn) -> None:
        self.json_keys.update((key, _kind_of(value)) for key, value in annotations.items())
        for kind in self.kinds:
            names = getattr(self.recipe.data.fields, kind) or []
            for name in [names] if isinstance(names, str) else names:
                self._look_at_captions(kind, annotations.get(name), drawn)
        captions = read_captions(annotations, self.recipe.data.fields)
        for kind in self.kinds:
            for text in set(captions[kind]):
                self._repeats(self.texts.setdefault(kind, {}), text, drawn, text)
        for kind in self.split:
            for text in captions[kind]:
                self._look_at_sentences(kind, text, drawn)
        rng = training_rng(self.recipe, drawn)
        for request, drawn_texts in draw_captions(captions, self.needs.captions, rng).items():
            self._count_served(request, bool(drawn_texts), drawn)
            for text in drawn_texts:
                self._look_at_length(request, text, drawn)
        if "regions" in self.read:
            self._look_at_regions(annotations, drawn)
        if "vqa" in self.read:
            self._look_at_questions(annotations, drawn)

    def _look_at_captions(self, kind: str, value: Any, drawn: Drawn) -> None:
        subject = f"captions: {kind}"
        for text in value if isinstance(value, list) else [] if value is None else [value]:
            self.of[subject] += 1
            for problem in caption_problems(text):
                self.note(problem, subject, drawn, text)

    def _look_at_sentences(self, kind: str, text: str, drawn: Drawn) -> None:
        sentences = split_sentences(text)
        self.sentences.setdefault(kind, []).append(len(sentences))
        if not sentences:
            self.note("caption_without_sentence", f"captions: {kind}", drawn, text)
        context = self.recipe.model.text.context_length
        if len(sentences) == 1 and len(tokens.encode(text)) + 2 > context:
            self.note("caption_in_one_sentence", f"captions: {kind}", drawn, text)
        for sentence in sentences:
            self.of[f"sentences: {kind}"] += 1
            if len(sentence.split()) == 1:
                self.note("sentence_of_one_word", f"sentences: {kind}", drawn, sentence)

    def _look_at_length(self, request: str, text: str, drawn: Drawn) -> None:
        length = len(tokens.encode(text)) + 2
        self.lengths[request].append(length)
        self.of[f"drawn: {request}"] += 1
        if length > self.recipe.model.text.context_length:
            self.note("caption_cut", f"drawn: {request}", drawn, text)

    def _look_at_regions(self, annotations: Mapping[str, Any], drawn: Drawn) -> None:
        value = annotations.get(self.recipe.data.fields.regions or "")
        if value is not None and not isinstance(value, list):
            self.note("regions_not_list", "samples", drawn, value)
        for region in value if isinstance(value, list) else []:
            self.of["regions"] += 1
            problem = region_problem(region, self.recipe.data, self.recipe.model.vision.image_size)
            if problem:
                self.note(problem, "regions", drawn, region)

    def _look_at_questions(self, annotations: Mapping[str, Any], drawn: Drawn) -> None:
        value = annotations.get(self.recipe.data.fields.vqa or "")
        if value is not None and not isinstance(value, list):
            self.note("vqa_not_list", "samples", drawn, value)
        for pair in value if isinstance(value, list) else []:
            self.of["questions"] += 1
            if problem := question_problem(pair):
                self.note(problem, "questions", drawn, pair)

    def _look_at_prompts(self, sample: Sample, drawn: Drawn) -> None:
        context = self.recipe.model.text.context_length
        for task in self.needs.tasks:
            self._count_served(task.name, task.name in sample.prompts, drawn)
        for name, (ids, answer_start, _) in sample.prompts.items():
            self.of[f"prompts: {name}"] += 1
            if answer_start >= context:
                self.note("answer_lost", f"prompts: {name}", drawn)
            elif ids[-1] != tokens.END:
                self.note("prompt_cut", f"prompts: {name}", drawn)

    def _count_served(self, name: str, is_served: bool, drawn: Drawn) -> None:
        self.served[name] += is_served
        if not is_served:
            self._repeats(self.lacking, name, drawn)

    def _repeats(self, seen: dict, what: Any, drawn: Drawn, value: str = "") -> None:
        seen.setdefault(what, Seen(0, drawn.key, drawn.shard, value)).count += 1


def draw_captions(
    captions: Mapping[str, list[str]], requests: tuple[CaptionRequest, ...], rng: np.random.Generator
) -> dict[str, list[str]]:
    """The captions that training draws for each request with a sample's `training_rng`: it draws them first."""
    return {request.name: sample_captions(captions, request, rng) for request in requests}


def _kind_of(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str):
        return "text"
    return "objects" if isinstance(first, dict) and isinstance(value, list) else "else"
