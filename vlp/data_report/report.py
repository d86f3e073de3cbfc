"""The whole check of a recipe's training data: samples are drawn and looked at, and what was found is judged."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import quantiles

from vlp.data.sources import training_mixture
from vlp.data_report.findings import Coverage, Finding, coverage, findings, ranked
from vlp.data_report.reading import Drawn, ReadShards, draw, with_data
from vlp.data_report.shard_findings import file_findings, shard_findings
from vlp.data_report.survey import Survey
from vlp.data_report.throughput import Speed
from vlp.objectives.graph import graph_needs
from vlp.progress import with_progress
from vlp.recipe import Recipe

SIDES = (64, 128, 224, 336, 512, 768, 1024)
"""Pixels at which the histogram of the pictures' shorter sides is divided."""


@dataclass(frozen=True)
class Lengths:
    """Of something countable: how many cases, the median, the 90th percentile, the largest, and how many are cut."""

    name: str
    cases: int
    median: float
    most: float
    largest: int
    cut: int = 0


@dataclass
class DataReport:
    """What `tools/check_data.py` prints, and writes as JSON."""

    recipe: str
    scale: str
    shards: int
    shards_read: int
    samples: int
    usable: int
    skipped: dict[str, int]
    findings: list[Finding]
    coverage: list[Coverage]
    tokens: list[Lengths]
    """Of the captions drawn for each request, with start and end token."""
    sentences: list[Lengths]
    """Of the captions of each field that is split."""
    sides: dict[str, int]
    """Pictures by the length of their shorter side."""
    context_length: int
    image_size: int
    speeds: list[Speed] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def add(self, finding: Finding) -> None:
        self.findings = ranked([*self.findings, finding])

    def to_json(self) -> str:
        speeds = [asdict(speed) | {"images_per_second": speed.rate} for speed in self.speeds]
        return json.dumps(asdict(self) | {"errors": self.errors, "speeds": speeds}, indent=1) + "\n"


def check_data(recipe: Recipe, samples: int, pictures: int, ranks: int) -> tuple[DataReport, list[Drawn]]:
    """The report on `samples` samples, and `pictures` of them chosen evenly for the contact sheet.

    Raises:
        UserError: `data.train` names no shard, or `data.weights` does not fit it.
    """
    mixture = training_mixture(with_data(recipe, streams=1))
    survey, read = Survey(recipe, graph_needs(recipe).data), ReadShards()
    draws = with_progress(draw(mixture, recipe, samples, read), samples, "reading", "samples")
    chosen = _keep_evenly(_taken_in(survey, draws), pictures, recipe.train.seed)
    found = [*findings(survey), *shard_findings(mixture, read, recipe, ranks), *file_findings(recipe)]
    context = recipe.model.text.context_length
    report = DataReport(
        recipe=recipe.name,
        scale=recipe.scale,
        shards=len(mixture.shards),
        shards_read=len(read.names),
        samples=survey.samples,
        usable=survey.usable,
        skipped=dict(survey.skipped.most_common()),
        findings=ranked(found),
        coverage=coverage(survey),
        tokens=[_lengths(name, lengths, context) for name, lengths in survey.lengths.items() if lengths],
        sentences=[_lengths(kind, counts) for kind, counts in survey.sentences.items()],
        sides=_histogram([min(size) for size in survey.pictures]),
        context_length=context,
        image_size=recipe.model.vision.image_size,
    )
    return report, chosen


def _taken_in(survey: Survey, draws: Iterator[Drawn]) -> Iterator[Drawn]:
    for drawn in draws:
        survey.add(drawn)
        yield drawn


def _keep_evenly(draws: Iterator[Drawn], count: int, seed: int) -> list[Drawn]:
    """`count` of the samples, each as likely, in their order (reservoir sampling)."""
    rng, kept = random.Random(seed), {}
    for number, drawn in enumerate(draws):
        place = number if number < count else rng.randrange(number + 1)
        if place < count:
            kept[place] = (number, drawn)
    return [drawn for _, drawn in sorted(kept.values(), key=lambda pair: pair[0])]


def _lengths(name: str, values: list[int], limit: int | None = None) -> Lengths:
    tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    cut = 0 if limit is None else sum(value > limit for value in values)
    return Lengths(name, len(values), tenths[4], tenths[8], max(values), cut)


def _histogram(sides: list[int]) -> dict[str, int]:
    """Pictures in each range of `SIDES`, from the smallest to the largest that occurs."""
    names = [f"under {SIDES[0]}", *(f"{low} to {high - 1}" for low, high in pairwise(SIDES))]
    names.append(f"{SIDES[-1]} and more")
    counts = Counter(sum(side >= edge for edge in SIDES) for side in sides)
    return {names[place]: counts[place] for place in range(min(counts, default=0), max(counts, default=-1) + 1)}
