"""The judgement: what was counted becomes findings, each with its severity and what to do."""

from dataclasses import dataclass
from typing import Literal

from vlp.data.batch import DataNeeds
from vlp.data.layouts import LAYOUTS
from vlp.data.shards import top_reasons
from vlp.data_report.catalogue import CATALOGUE, Problem
from vlp.data_report.printable import printable
from vlp.data_report.survey import Seen, Survey
from vlp.errors import nearest
from vlp.objectives import REGISTRY
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

Severity = Literal["error", "warning", "note"]
"""Training would stop or an objective would get nothing; samples are lost or quality suffers; good to know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
TOOLS = {
    **dict.fromkeys(("raw", "short", "long"), "tools/prepare_captions.py joins captions from a table"),
    "regions": "tools/prepare_regions.py makes them from long captions",
    "vqa": "tools/prepare_vqa.py makes them from captions",
}
METADATA = {"key", "url", "sha256", "md5", "status", "error_message", "exif", "width", "height"}
"""Keys that img2dataset writes, never captions."""
REPEATED = 5
"""A caption is boilerplate when this many samples have it and they are one in `EVERY` or more."""
EVERY = 50


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or good to know, in `count` of `of` cases of `subject`, with the first of them."""

    problem: str
    severity: Severity
    subject: str
    what: str
    count: int
    of: int
    mend: str
    key: str = ""
    shard: str = ""
    value: str = ""

    @property
    def share(self) -> float:
        return self.count / max(1, self.of)


@dataclass(frozen=True)
class Coverage:
    """How many samples have what an objective reads. `images` is how many of a step's batch it then gets."""

    objective: str
    reads: str
    field: str
    have: int
    of: int
    images: float


def coverage(survey: Survey) -> list[Coverage]:
    """A row for each thing that each objective reads. Captions count in the samples whose JSON can be
    read, and those without are skipped; tasks and views in those of them that have a picture too."""
    recipe, rows = survey.recipe, []
    batch, complete = recipe.train.batch_size, survey.complete
    for name, settings in recipe.objectives.items():
        needs: DataNeeds = REGISTRY[settings.type].needs(recipe, settings).data
        for request in needs.captions:
            have = survey.served[request.name]
            rows.append(Coverage(name, request.name, _keys(recipe, *request.fields), have, survey.annotated, batch))
        for task in needs.tasks:
            have = survey.served[task.name]
            images = batch * task.share * have / max(1, complete)
            rows.append(Coverage(name, task.name, _keys(recipe, task.field), have, complete, images))
        if needs.view_share:
            rows.append(Coverage(name, "views", "picture", complete, complete, batch * needs.view_share))
    return rows


def findings(survey: Survey) -> list[Finding]:
    """All of them, the worst first."""
    found = [*_skipped(survey), *_missing(survey), *_counted(survey), *_repeated(survey), *_unknown_keys(survey)]
    return ranked(found)


def ranked(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share))


def _skipped(survey: Survey) -> list[Finding]:
    """No sample, or too many that cannot be used. Why each was skipped is a finding of its own."""
    if not survey.samples:
        mend = "see what is said about the shards; training would stop"
        return [Finding("no_samples", "error", "samples", "were found in the shards that were read", 0, 0, mend)]
    bad, allowed = survey.skipped.total(), survey.recipe.data.bad_share
    if bad <= allowed * survey.samples:
        return []
    return [
        Finding(
            "too_many_skipped",
            "error",
            "samples",
            f"cannot be used, more than data.bad_share={allowed:g} allows: {top_reasons(survey.skipped)}",
            bad,
            survey.samples,
            "mend what the findings below name; training stops at such a share",
        )
    ]


def _missing(survey: Survey) -> list[Finding]:
    needs, found = graph_needs(survey.recipe).data, []
    for request in needs.captions:
        have, of = survey.served[request.name], survey.annotated
        what = f"no {request.name} caption, which {_readers(survey, request.name)} reads; the sample is skipped"
        severity = "warning" if have else "error"
        found += _lacking("no_caption", severity, what, survey, request.name, of, request.fields)
    for task in needs.tasks:
        have, of, readers = survey.served[task.name], survey.complete, _readers(survey, task.name)
        what = f"nothing for {task.name}, which {readers} reads" + ("" if have else "; it gets nothing at all")
        severity = "note" if 2 * have >= of else "warning" if have else "error"
        found += _lacking("no_task", severity, what, survey, task.name, of, (task.field,))
        expected = survey.recipe.train.batch_size * task.share * have / max(1, of)
        if 0 < expected < 1:
            what = f"{readers} gets {expected:.2g} images a step, so it sits most steps out"
            mend = f"raise objectives.{readers}.share or train.batch_size, or annotate more samples"
            found.append(Finding("rare_task", "warning", "samples", what, have, of, mend))
    return found


def _lacking(
    problem: str, severity: Severity, what: str, survey: Survey, reads: str, of: int, fields: tuple[str, ...]
) -> list[Finding]:
    seen = survey.lacking.get(reads)
    if seen is None:
        return []
    mend = _where(survey, *fields)
    return [Finding(problem, severity, "samples", what, seen.count, of, mend, seen.key, seen.shard)]


def _counted(survey: Survey) -> list[Finding]:
    """What was counted as it was met. Missing captions are told by the request that misses them."""
    found = []
    for (problem, subject), seen in survey.problems.items():
        if problem != "no_caption":
            known = CATALOGUE.get(problem) or Problem(
                problem.replace("_", " ") + "; the sample is skipped", "drop them"
            )
            found.append(_finding(problem, known, subject, seen, seen.count, survey.of[subject]))
    return found


def _repeated(survey: Survey) -> list[Finding]:
    found = []
    for kind, texts in survey.texts.items():
        least = max(REPEATED, survey.samples / EVERY)
        found.append(("caption_repeated", f"captions: {kind}", [s for s in texts.values() if s.count >= least], 0))
    found.append(("picture_repeated", "pictures", [s for s in survey.same_pictures.values() if s.count > 1], 1))
    found.append(("duplicate_key", "samples", [s for s in survey.same_keys.values() if s.count > 1], 1))
    return [
        _finding(problem, CATALOGUE[problem], subject, max(seen, key=lambda s: s.count), count, survey.samples)
        for problem, subject, seen, original in found
        if (count := sum(s.count - original for s in seen))
    ]


def _unknown_keys(survey: Survey) -> list[Finding]:
    """Keys of the field map that no sample has, where others of the kind are found."""
    present, found = {key for key, _ in survey.json_keys}, []
    for kind in survey.kinds:
        for name in _names(survey.recipe, kind):
            if present and name not in present:
                what = f"have no key '{name}', which data.fields.{kind} names"
                mend = f"nothing, if another key serves{nearest(name, sorted(present))}"
                found.append(Finding("unknown_key", "note", "samples", what, survey.samples, survey.samples, mend))
    return found


def _finding(problem: str, known: Problem, subject: str, seen: Seen, count: int, of: int) -> Finding:
    severity = "warning" if count > known.warn_above * of else "note"
    value = printable(seen.value, 200)
    return Finding(problem, severity, subject, known.what, count, of, known.mend, seen.key, seen.shard, value)


def _where(survey: Survey, *fields: str) -> str:
    """What to do about a field that samples lack: keys that may hold it under another name, or the tool."""
    wanted = "objects" if fields[0] in ("regions", "vqa") else "text"
    read = {name for kind in ("raw", "short", "long", "regions", "vqa") for name in _names(survey.recipe, kind)}
    others = [
        key
        for (key, holds), _ in survey.json_keys.most_common()
        if holds == wanted and key not in read and key not in METADATA
    ]
    layouts = [
        name
        for name, layout in LAYOUTS.items()
        if any({*layout.columns.get(field, ())} & {*others} for field in fields)
    ]
    named = " or ".join(f"data.fields.{field}" for field in fields)
    hints = f"name in {named} the key that holds them"
    if others:
        hints += f" (these samples also have {', '.join(printable(key, 40) for key in others[:6])})"
    if layouts:
        hints += f", or data.fields={layouts[0]}, whose keys they have"
    return f"{hints}; {TOOLS[fields[-1]]}"


def _readers(survey: Survey, reads: str) -> str:
    """The objectives that read a caption request or a task."""
    readers = []
    for name, settings in survey.recipe.objectives.items():
        needs = REGISTRY[settings.type].needs(survey.recipe, settings).data
        if reads in {part.name for part in needs.captions + needs.tasks}:
            readers.append(name)
    return ", ".join(readers)


def _keys(recipe: Recipe, *fields: str) -> str:
    return ", ".join(name for field in fields for name in _names(recipe, field))


def _names(recipe: Recipe, field: str) -> list[str]:
    names = getattr(recipe.data.fields, field) or []
    return [names] if isinstance(names, str) else list(names)
