"""Questions and answers about a picture, out of its caption: the prompt, and the strict parser of what comes back.

An instruction model writes its pairs in many shapes. What does not read as one question and one short answer is
counted by reason and left out [docs/method.md 3, Data].
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vlp.annotation.generation import Backend, Device, Generate, GenerationSettings, load_generator
from vlp.annotation.shards import Annotate, Item
from vlp.settings import Count, FieldMap, Positive, Section

PROMPT = """Given the following image caption:
“{caption}”
Please generate five short questions and corresponding short answers that someone might ask about this image. \
The questions should be relevant to the content of the caption, and the answers be very short, concise, and factual \
based on the caption. Only generate questions and answers that are strictly answerable using the provided caption. \
Do not invent details or use outside knowledge."""
"""GoldiCLIP's, S4 section 6.3."""
MAX_PAIRS = 5
"""As many as the prompt asks for; a model that goes on after them has lost its task."""
MAX_QUESTION_WORDS = 25
"""A longer one would leave its answer no room among the 77 tokens that the text tower reads."""

Pair = dict[str, str]
"""`question` and `answer`, as a sample's JSON has them."""

_KEYS = ("question", "answer", "q", "a")
_PLAIN = str.maketrans("“”‘’–—•→", "\"\"''----")  # noqa: RUF001
"""Typographic signs as typed ones: CLIP's byte pairs are of these."""
_WORD = r"[^\W_]"
_EMPHASIS = re.compile(rf"(?<!{_WORD})\*+(?=\S)|(?<=\S)\*+(?!{_WORD})|__|`+")
_MARK = re.compile(r"(?:[-*+>]\s+|\(?\d{1,2}[.)](?=\D|$)\s*)*")
"""Bullets and numbers before a line."""
_QUESTION, _ANSWER = r"(?:question\s*#?\d{0,2}|q#?\d{0,2})", r"(?:answer\s*#?\d{0,2}|(?:ans|a)#?\d{0,2})"
_BEHIND_LABEL = r"(?:\s*:|[.)](?=\s|$)|\s+-(?=\s))\s*"
_LABEL = re.compile(rf"(?:{_QUESTION}|{_ANSWER}){_BEHIND_LABEL}|(?:question|answer)\s*#?\d{{0,2}}$", re.I)
_INLINE = re.compile(rf"([^?]*\?[\"']?)[\s:=>-]+({_ANSWER}{_BEHIND_LABEL})?(\S.*)", re.I)
"""A question, perhaps a label, and the answer, all in one line."""
_NEXT_QUESTION = re.compile(rf"(?<=\S)[^\S\n]+(?=(?:\(?\d{{1,2}}[.)]\s*)?{_QUESTION}\s*:)", re.I)
_MARKUP = re.compile(rf"[*`<>{{}}\[\]|\\#�]|__|https?:|\b(?:{_QUESTION}|{_ANSWER})\s*:", re.I)
_SAID = (
    r"(?:specif(?:y|ied)|mention(?:ed)?|stated?|provided?|given?|known?|described?|indicated?|determined?|"
    r"reveal(?:ed)?|say|said|tell|told|identif(?:y|ied)|disclosed?|answer(?:ed)?|infer(?:red)?)\b"
)
_UNANSWERABLE = re.compile(
    r"^(?:unknown|unclear|unspecified|undetermined|n/a|na$|no (?:mention|information|answer|details))\b"
    rf"|\b(?:not|cannot|can't|never|none|nothing|(?:is|are|was|does|do|could)n't)\s+(?:\w+\s+){{0,2}}{_SAID}"
    r"|\bnot applicable\b",
    re.I,
)


class QuestionSettings(Section):
    """Which caption is asked about, and which pairs are kept. The defaults are the command line's."""

    captions: Literal["short", "long", "raw"]
    index: Count
    """Which caption of this kind, from 0."""
    fields: FieldMap
    max_answer_words: Positive
    replace: bool
    """Ask about samples that have pairs too, and drop those."""


def question_annotator(
    settings: QuestionSettings, generation: GenerationSettings, backend: Backend, device: Device, batch_size: int
) -> Annotate:
    """Load the model for `annotate_shards`. Raises `UserError` as `load_generator` does."""
    return partial(annotate_questions, load_generator(generation, backend, device, batch_size), settings)


def annotate_questions(generate: Generate, settings: QuestionSettings, items: list[Item]) -> Counter[str]:
    """Ask about the items and write the pairs to their JSON; counts of what was done, and of what was not and why."""
    counts: Counter[str] = Counter()
    key = settings.fields.vqa
    asked: list[tuple[Item, str]] = []
    for item in items:
        existing = item.annotations.get(key)
        if existing and isinstance(existing, list) and not settings.replace:
            counts["had_pairs_already"] += 1
            continue
        item.annotations.pop(key, None)
        captions = item.captions(settings.fields)[settings.captions]
        if settings.index < len(captions):
            asked.append((item, make_prompt(captions[settings.index])))
        else:
            counts["without_caption"] += 1
    for (item, _), answer in zip(asked, generate([prompt for _, prompt in asked]), strict=True):
        if answer is None:
            counts["caption_too_long"] += 1
            continue
        pairs, rejected = parse_pairs(answer.text, answer.cut, settings.max_answer_words)
        counts.update({f"rejected_{reason}": count for reason, count in rejected.items()})
        counts.update(pairs=len(pairs), **{"annotated" if pairs else "no_pairs": 1})
        if pairs:
            item.annotations[key] = pairs
    return counts


def make_prompt(caption: str) -> str:
    """The prompt about a caption; half surrogates, which JSON can hold and no tokenizer takes, become `?`."""
    return PROMPT.format(caption=caption.encode(errors="replace").decode())


def parse_pairs(text: str, cut: bool = False, max_answer_words: int = 10) -> tuple[list[Pair], Counter[str]]:
    """The well-formed pairs of a model's answer, at most `MAX_PAIRS`, and everything else counted by reason.

    Pairs may be numbered, bulleted, bold, labelled (`Question 1:`, `Q:`, `A1.`), on one line or two, or JSON objects
    with `question` and `answer`. Where one text could be read two ways, the pair is rejected.

    Args:
        cut: the text was stopped before its end, so its last piece counts only if it is visibly whole.
    """
    text = re.sub(r"^\s*```.*$", "", text, flags=re.M)
    rejected: Counter[str] = Counter()
    found = _read_json if re.search(r"\{\s*[\"']", text) else _read_lines
    pairs: dict[str, Pair] = {}
    for draft in found(text, cut, rejected):
        question, answer = _clean(draft.question), _clean(draft.answer or "")
        same = " ".join(re.findall(r"\w+", question.casefold()))
        reason = _fault(draft, question, answer, max_answer_words)
        if reason is None and same in pairs:
            reason = "duplicate"
        if reason is None and len(pairs) == MAX_PAIRS:
            reason = "more_than_asked"
        if reason is None:
            pairs[same] = {"question": question, "answer": answer}
        else:
            rejected[reason] += 1
    return list(pairs.values()), rejected


@dataclass
class _Draft:
    """A pair in the making. Its question is empty while only a label was read, its answer None while nothing was."""

    question: str
    answer: str | None = None
    marked: bool = True
    """The question has a label, number or bullet."""
    broken: bool = False
    """A field goes on in the next line."""


def _fault(draft: _Draft, question: str, answer: str, max_answer_words: int) -> str | None:
    """Why this is no well-formed pair; None if it is one."""
    faults = {
        "several_lines": draft.broken,
        "no_answer": draft.answer is None,
        "no_question": not (re.search(_WORD, question) and question.rstrip("\"'").endswith("?")),
        "several_questions": question.count("?") > 1,
        "empty_answer": not re.search(_WORD, answer),
        "answer_is_a_question": "?" in answer,
        "unanswerable": _UNANSWERABLE.search(answer),
        "long_question": len(question.split()) > MAX_QUESTION_WORDS,
        "long_answer": len(answer.split()) > max_answer_words,
        "markup": _MARKUP.search(question) or _MARKUP.search(answer) or not (question + answer).isprintable(),
    }
    return next((reason for reason, found in faults.items() if found), None)


def _clean(text: str) -> str:
    """One line without a bullet before it, separators behind it, and quotes around it."""
    text = re.sub(r"^[-*+>]\s+", "", " ".join(text.translate(_PLAIN).split())).rstrip(" ,;")
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def _read_json(text: str, cut: bool, rejected: Counter[str]) -> Iterator[_Draft]:
    """The innermost objects of the text, each for itself: a list that was cut has its first ones whole."""
    end = 0
    for match in re.finditer(r"\{[^{}]*\}", text):
        end = match.end()
        try:
            found = json.loads(match[0])
        except (ValueError, RecursionError):
            found = {}
        pair = {key.casefold()[0]: value for key, value in found.items() if key.casefold() in _KEYS}
        if isinstance(pair.get("q"), str) and isinstance(pair.get("a"), str):
            yield _Draft(pair["q"], pair["a"])
        else:
            rejected["unreadable_json"] += 1
    if "{" in text[end:]:
        rejected["cut_short" if cut else "unreadable_json"] += 1


def _read_lines(text: str, cut: bool, rejected: Counter[str]) -> Iterator[_Draft]:
    """The pairs of a text by its lines."""
    lines = list(_lines(text))
    torn = cut and bool(lines) and not text.endswith(("\n", ".", "!"))
    draft: _Draft | None = None
    gap = True
    for kind, line in lines[:-1] if torn else lines:
        if kind == "blank":
            gap = True
            continue
        due = _due(draft, kind, gap)
        if kind == "question" or (kind == "text" and line.endswith("?") and (due is None or draft.answer)):
            if draft and (draft.question or draft.answer):
                yield draft
            draft = _Draft(line, marked=kind == "question")
        elif kind == "answer":
            if draft and draft.answer is None:
                draft.answer = line
            else:
                rejected["answer_without_question"] += 1
        elif due is None or line.endswith(":"):
            rejected["remark"] += 1
        elif due == "more":
            draft.broken = True
        else:
            setattr(draft, due, line)
        gap = False
    unfinished = cut and draft is not None and not draft.answer
    if draft and not unfinished:
        yield draft
    if torn or unfinished:
        rejected["cut_short"] += 1


def _due(draft: _Draft | None, kind: str, gap: bool) -> Literal["question", "answer", "more"] | None:
    """What a line without a label is to the draft above it; None where it belongs to no pair."""
    if draft is None:
        return None
    if not draft.question:
        return "question"
    asked = draft.answer is None and draft.question.endswith("?")
    if draft.answer == "" or (asked and (kind == "bullet" or (draft.marked and not gap))):
        return "answer"
    return None if gap else "more"


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """What each line says, without labels and marks, and its kind: question, answer, bullet, text or blank."""
    for line in _NEXT_QUESTION.sub("\n", _EMPHASIS.sub("", text.translate(_PLAIN))).splitlines():
        line = line.strip().lstrip("#").lstrip()
        mark = _MARK.match(line)[0]
        label = _LABEL.match(line, len(mark))
        rest = line[label.end() if label else len(mark) :]
        if label:
            kind = "question" if label[0][0] in "qQ" else "answer"
        elif not re.search(_WORD, rest):
            kind = "blank"
        elif mark and ("?" in rest or re.search(r"\d", mark)):
            kind = "question"
        else:
            kind = "bullet" if mark else "text"
        inline = _INLINE.fullmatch(rest) if kind in ("question", "text") else None
        if inline and (kind == "question" or inline[2]):
            yield kind, inline[1]
            yield "answer", inline[3]
        else:
            yield kind, rest
