"""The prompt, the parser of what an instruction model answers, and the pairs in the samples of shards."""

# ruff: noqa: RUF001
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from random_run import run_tool

from vlp.annotation import questions
from vlp.annotation.generation import Answer
from vlp.annotation.questions import MAX_PAIRS, PROMPT, QuestionSettings, annotate_questions, make_prompt, parse_pairs
from vlp.annotation.shards import Item
from vlp.data.shards import read_shard
from vlp.settings import FieldMap

TOOL = "tools/prepare_vqa.py"
DOG = [("What animal is in the image?", "A dog"), ("What color is the dog?", "Brown"), ("Where is it?", "On a beach")]


def pairs(text: str, cut: bool = False, max_answer_words: int = 10) -> list[tuple[str, str]]:
    return [(pair["question"], pair["answer"]) for pair in parse_pairs(text, cut, max_answer_words)[0]]


def reasons(text: str, cut: bool = False, max_answer_words: int = 10) -> dict[str, int]:
    return dict(parse_pairs(text, cut, max_answer_words)[1])


# ---- the prompt -------------------------------------------------------------------------------------------------


def test_the_prompt_is_the_papers_word_for_word(repository: Path) -> None:
    quoted = re.search(
        r"'(Given the following image caption: .*?)' \(C26\)", (repository / "docs/method.md").read_text()
    )
    assert " ".join(make_prompt("ref_caption").split()) == quoted[1]
    assert make_prompt("a {dog}") == PROMPT.replace("{caption}", "a {dog}")
    assert "“half a pair ?”" in make_prompt("half a pair \ud83d")


# ---- shapes that are read ---------------------------------------------------------------------------------------

SHAPES = {
    "numbered, labelled, indented": """1. Question: What animal is in the image?
   Answer: A dog

2. Question: What color is the dog?
   Answer: Brown

3. Question: Where is it?
   Answer: On a beach""",
    "Q1 and A1, no blank lines": """Q1: What animal is in the image?
A1: A dog
Q2: What color is the dog?
A2: Brown
Q3: Where is it?
A3: On a beach
""",
    "bold labels": """**Question:** What animal is in the image?
**Answer:** A dog

**Question:** What color is the dog?
**Answer:** Brown

**Question**: Where is it?
**Answer**: On a beach""",
    "bold numbered questions, dashes": """1. **What animal is in the image?**
   - A dog
2. **What color is the dog?**
   - Brown
3. **Where is it?**
   - On a beach""",
    "labels on one line": """1. Q: What animal is in the image? A: A dog
2. Q: What color is the dog? A: Brown
3. Q: Where is it? A: On a beach""",
    "all on one line": "Q1: What animal is in the image? A1: A dog Q2: What color is the dog? A2: Brown "
    "3. Question: Where is it? Answer: On a beach",
    "answers behind numbered questions": """1. What animal is in the image? A dog
2. What color is the dog? - Brown
3) Where is it? Answer: On a beach""",
    "answers below numbered questions": """1. What animal is in the image?
A dog
2. What color is the dog?
Brown
3. Where is it?
On a beach""",
    "headings, labels on lines of their own": """### Question 1
What animal is in the image?

**Answer:**
A dog

### Question 2:
What color is the dog?
### Answer 2:
Brown

**Question 3**
Where is it?
**Answer 3**
On a beach""",
    "bullets": """- What animal is in the image?
  - A dog
- What color is the dog?
  - Brown

• Where is it?
  • On a beach""",
    "plain questions": """What animal is in the image?
Answer: A dog
What color is the dog?
Answer: Brown

Where is it?

Answer: On a beach""",
    "other signs behind labels": """Question 1 - What animal is in the image?
Answer 1 – A dog
Q2. What color is the dog?
A2. Brown
Question #3: Where is it?
Ans: On a beach""",
    "preamble, quotes, rules, closing remarks": """Sure! Here are five short questions and answers based on the caption:

---
1. Question: "What animal is in the image?"
   Answer: "A dog"
---
2. Question: “What color is the dog?”
   Answer: ‘Brown’
---
3. Question: Where is it?
   Answer: On a beach,

These questions and answers are strictly based on the given caption.""",
    "carriage returns": "1. Question: What animal is in the image?\r\n   Answer: A dog\r\n\r\n"
    "2. Question: What color is the dog?\r\n   Answer: Brown\r\n3. Question: Where is it?\r\n   Answer: On a beach\r\n",
    "JSON": """[
  {"question": "What animal is in the image?", "answer": "A dog"},
  {"question": "What color is the dog?", "answer": "Brown"},
  {"question": "Where is it?", "answer": "On a beach"}
]""",
    "fenced JSON lines with other keys": """Here they are:
```json
{"Q": "What animal is in the image?", "A": "A dog"}
{"Question": "What color is the dog?", "Answer": "Brown", "id": 2}
{"questions": "none", "question": "Where is it?", "answer": "On a beach"}
```
Let me know if you need more!""",
    "JSON in an object": '{"pairs": [{"question": "What animal is in the image?", "answer": "A dog"}, {"question": '
    '"What color is the dog?", "answer": "Brown"}, {"question": "Where is it?", "answer": "On a beach"}]}',
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_are_read(shape: str) -> None:
    assert pairs(SHAPES[shape]) == DOG
    assert set(reasons(SHAPES[shape])) <= {"remark"}


def test_remarks_are_counted() -> None:
    assert reasons(SHAPES["preamble, quotes, rules, closing remarks"]) == {"remark": 2}


def test_what_belongs_to_a_text_stays() -> None:
    text = """Q1: What does the sign that says "Stop" mean?
A1: "Stop" and "Wait"
Q2: How long is the 3.5-meter boat?
A2: 3.5 meters, at 10–12 knots
Q3: When is it?
A3: A.M.
Q4: Which letter is it?
A4: A
Q5: What is 2*3 - 1?
A5: 1. FC Köln"""
    assert pairs(text) == [
        ('What does the sign that says "Stop" mean?', '"Stop" and "Wait"'),
        ("How long is the 3.5-meter boat?", "3.5 meters, at 10-12 knots"),
        ("When is it?", "A.M."),
        ("Which letter is it?", "A"),
    ]
    assert reasons(text) == {"markup": 1}


# ---- what is rejected -------------------------------------------------------------------------------------------

GOOD = "Q: What animal is it?\nA: A dog\n\n"


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("", {}),
        ("\n \t\n***\n", {}),
        ("I cannot help with that.", {"remark": 1}),
        ("Would you like more questions?", {"no_answer": 1}),
        ("Do you need more?\nLet me know!", {"several_lines": 1}),
        ("Q: What color is it?", {"no_answer": 1}),
        ("Q: What color is it?\nA:", {"empty_answer": 1}),
        ("Q: What color is it?\nA: --", {"empty_answer": 1}),
        ("Q: Describe the car.\nA: Red", {"no_question": 1}),
        ("Q: The car\nA: Red", {"no_question": 1}),
        ("Q: ?\nA: Red", {"no_question": 1}),
        ("Question:\nAnswer: Red\n\nQ: What color is it?", {"no_question": 1, "no_answer": 1}),
        ("A: Red", {"answer_without_question": 1}),
        ("Q: What color is it?\nA: Red\nA: Blue", {"answer_without_question": 1}),
        ("Q: Is it red? Or blue?\nA: Red", {"answer_is_a_question": 1, "answer_without_question": 1}),
        ('{"question": "Is it red? Or blue?", "answer": "Red"}', {"several_questions": 1}),
        ("Q: What color is it?\nA: What do you think?", {"answer_is_a_question": 1}),
        ("Q: What color is it?\nA: A red one\nand a blue one", {"several_lines": 1}),
        ("Q: What color is\nthe car?\nA: Red", {"several_lines": 1}),
        ("1. What animals are there?\n   - A dog\n   - A cat", {"several_lines": 1}),
        ("Q: What color is it?\nA: " + "very " * 10 + "red", {"long_answer": 1}),
        ("Q: What " + "very " * 24 + "red thing is it?\nA: Red", {"long_question": 1}),
        ("Q: What color is it?\nA: <b>Red</b>", {"markup": 1}),
        ("Q: What color is it?\nA: [red](colors)", {"markup": 1}),
        ("Q: What color is it?\nA: Re\x00d", {"markup": 1}),
        ("Q: What color is it?\nA: Re�", {"markup": 1}),
        ("1. What color is it? (Answer: red)", {"markup": 1}),
        ("| Question | Answer |\n|---|---|\n| What color is it? | Red |", {"remark": 3 - 1}),
        ("Questions:\n1. What color?\n2. What size?\n\nAnswers:\n1. Red\n2. Big", {"remark": 2, "no_answer": 4}),
        ("5. What color is it?\n\nThese questions are about the caption.", {"remark": 1, "no_answer": 1}),
        ("1. What color is it?\n2. Red", {"no_answer": 2}),
        ("{'question': 'What color is it?', 'answer': 'Red'}", {"unreadable_json": 1}),
        ('{"question": "What color is it?", "answer": ["Red"]}', {"unreadable_json": 1}),
        ('{"question": "What color is it?"}', {"unreadable_json": 1}),
        ('{"question": "What color is it?", "answer": "Red"', {"unreadable_json": 1}),
        ('{"question": ' + "[" * 5000 + "}", {"unreadable_json": 1}),
    ],
)  # fmt: skip
def test_what_is_rejected(text: str, counted: dict[str, int]) -> None:
    kept = [("What color is it?", "Red")] if counted == {"answer_without_question": 1} and "Blue" in text else []
    assert pairs(text) == kept and reasons(text) == counted
    if "{" not in text:
        assert pairs(GOOD + text) == [("What animal is it?", "A dog"), *kept]


@pytest.mark.parametrize(
    "answer",
    [
        "Not specified", "Not mentioned in the caption.", "It is not specified", "The caption does not say.", "Unknown",
        "N/A", "NA", "Not applicable", "None mentioned", "Unclear from the caption", "Cannot be determined",
        "It can’t be determined", "No information", "The color isn't stated", "Unspecified", "Not explicitly described",
        "unknown (not given)",
    ],
)  # fmt: skip
def test_answers_that_say_nothing(answer: str) -> None:
    assert pairs(f"Q: What color is it?\nA: {answer}") == []
    assert reasons(f"Q: What color is it?\nA: {answer}") == {"unanswerable": 1}


@pytest.mark.parametrize("answer", ["None", "No", "Not a statue", "Nothing", "Nobody", "Known as Big Ben", "NASA"])
def test_answers_that_say_no(answer: str) -> None:
    assert pairs(f"Q: What color is it?\nA: {answer}") == [("What color is it?", answer)]


def test_repeated_questions_and_more_than_were_asked_for() -> None:
    text = "Q: What is it?\nA: A dog\nQ: **what is it ?**\nA: A cat\nQ: what is it?\nA: A dog\n"
    assert pairs(text) == [("What is it?", "A dog")] and reasons(text) == {"duplicate": 2}
    text = "".join(f"{i}. Question: What is thing {i}?\n   Answer: {i}\n" for i in range(1, 13))
    assert pairs(text) == [(f"What is thing {i}?", str(i)) for i in range(1, MAX_PAIRS + 1)]
    assert reasons(text) == {"more_than_asked": 12 - MAX_PAIRS}


def test_the_longest_answer_is_a_setting() -> None:
    text = "Q: What is it?\nA: one two three"
    assert pairs(text, max_answer_words=3) == [("What is it?", "one two three")]
    assert pairs(text, max_answer_words=2) == [] and reasons(text, max_answer_words=2) == {"long_answer": 1}


WHOLE = "1. Question: What is it?\n   Answer: A dog\n2. Question: Where is it?\n   Answer: On a beach"


def test_a_text_that_was_cut_anywhere() -> None:
    for length in range(len(WHOLE) + 1):
        text = WHOLE[:length]
        assert pairs(text, cut=True) == ([("What is it?", "A dog")] if "A dog\n" in text else []), text
        between_pairs = re.search(r"(^|dog\n)(\d\.)?$", text)
        assert reasons(text, cut=True) == ({} if between_pairs else {"cut_short": 1}), text


def test_a_last_pair_that_is_visibly_whole() -> None:
    assert len(pairs(WHOLE)) == 2 and len(pairs(WHOLE, cut=True)) == 1
    for end in (".", "\n", "!"):
        assert len(pairs(WHOLE + end, cut=True)) == 2 and reasons(WHOLE + end, cut=True) == {}
    text = SHAPES["JSON"]
    for length in range(len(text)):
        whole = text[:length].count("}")
        assert pairs(text[:length], cut=True) == DOG[:whole]
    assert reasons(text[:100], cut=True) == {"cut_short": 1}


# ---- any text ---------------------------------------------------------------------------------------------------

WORDS = st.lists(st.text("abcdefghijklmnoprstuvwxyz", min_size=2, max_size=8), min_size=1, max_size=6).map(" ".join)
RENDERED = [
    "{i}. Question: {q}\n   Answer: {a}\n\n",
    "Q{i}: {q}\nA{i}: {a}\n",
    "**Question {i}:** {q}\n**Answer:** {a}\n\n",
    "{i}. {q}\n   - {a}\n",
    "{i}. **{q}** {a}\n",
    "{i}) Q: {q} A: {a}\n",
    "Q: {q} A: {a} ",
    "- {q}\n  - {a}\n\n",
    "{q}\nAnswer: {a}\n\n",
    "### Question {i}\n{q}\n### Answer\n{a}\n\n",
    '{{"question": "{q}", "answer": "{a}"}}\n',
]


@given(
    st.sampled_from(RENDERED),
    st.dictionaries(WORDS, WORDS, min_size=1, max_size=MAX_PAIRS),
    st.sampled_from(["", "Here are five questions:\n\n"]),
    st.sampled_from(["", "\n\nI hope this helps."]),
)
def test_rendered_pairs_are_read_back(shape: str, drawn: dict[str, str], before: str, after: str) -> None:
    wanted = [(f"What is {question}?", f"the {answer}") for question, answer in drawn.items()]
    text = "".join(shape.format(i=i, q=q, a=a) for i, (q, a) in enumerate(wanted, 1))
    assert pairs(before + text + after) == wanted


MARKS = ["**", "*", "- ", "1. ", "# ", "```", "{", "}", "[", '"', "“", ":", "?", " ", "\n", "\n\n", "\u2028", "\x85"]
PARTS = ["Q:", "A1:", "Question 2", "Answer", "What is it?", "red", "N/A", '{"question": "', '", "answer": "', '"}']
PIECES = st.sampled_from([*MARKS, *PARTS, "\ud800", "\x00"]) | st.text(max_size=5)


@given(st.lists(PIECES, max_size=30).map("".join), st.booleans(), st.integers(1, 5))
def test_whatever_is_kept_is_a_question_and_a_short_answer(text: str, cut: bool, most: int) -> None:
    found, rejected = parse_pairs(text, cut, most)
    assert len(found) <= MAX_PAIRS and all(count > 0 for count in rejected.values())
    for pair in found:
        assert pair.keys() == {"question", "answer"}
        question, answer = pair["question"], pair["answer"]
        for field in (question, answer):
            assert field.strip() == field and field.isprintable() and len(field.splitlines()) == 1
            assert not set(field) & set("*`<>{}[]|\\#") and re.search(r"[^\W_]", field)
        assert question.rstrip("\"'").endswith("?") and question.count("?") == 1
        assert "?" not in answer and len(answer.split()) <= most


@pytest.mark.parametrize("text", ["*" * 50_000, " " * 50_000 + "x", "1. " * 20_000, "q:" * 20_000, "? " * 20_000,
                                  "{" * 50_000, '{"' * 20_000, "not a " * 10_000, "Q: " + "?\n" * 20_000])  # fmt: skip
def test_long_nonsense_is_read_in_no_time(text: str) -> None:
    assert parse_pairs(text)[0] == []


# ---- samples ----------------------------------------------------------------------------------------------------

SETTINGS = QuestionSettings(captions="short", index=0, fields=FieldMap(), max_answer_words=10, replace=False)
OLD = [{"question": "Is it old?", "answer": "Yes"}]


def item(**annotations) -> Item:
    return Item("key", {}, annotations)


def echo(prompts: list[str]) -> list[Answer | None]:
    """Asks what the caption says; a caption of one letter is too long, of two has no good pair, of three is cut."""
    captions = [re.search("“(.*)”", prompt, re.S)[1] for prompt in prompts]
    texts = ["Q: What is it?\nA: " + (caption if len(caption) != 2 else "Unknown") for caption in captions]
    return [
        None if len(caption) == 1 else Answer(text, cut=len(caption) == 3)
        for caption, text in zip(captions, texts, strict=True)
    ]


def answers(items: list[Item], field: str = "vqa") -> list[str | None]:
    return [it.annotations[field][0]["answer"] if field in it.annotations else None for it in items]


def test_samples_get_the_pairs_of_their_own_caption() -> None:
    items = [
        item(short=["a dog", "a cat"], long="a long text"), item(short="x"), item(short="xy"), item(short="xyz"),
        item(short="a bird", vqa=OLD), item(short="a cow", vqa=[]), item(short="a pig", vqa="none"), item(short=[" "]),
        item(),
    ]  # fmt: skip
    counts = annotate_questions(echo, SETTINGS, items)
    assert answers(items) == ["a dog", None, None, None, "Yes", "a cow", "a pig", None, None]
    assert items[0].annotations == {
        "short": ["a dog", "a cat"],
        "long": "a long text",
        "vqa": [{"question": "What is it?", "answer": "a dog"}],
    }
    assert counts == {
        "annotated": 3, "pairs": 3, "had_pairs_already": 1, "without_caption": 2, "caption_too_long": 1, "no_pairs": 2,
        "rejected_unanswerable": 1, "rejected_cut_short": 1,
    }  # fmt: skip


def test_which_caption_and_where_the_pairs_go() -> None:
    def changed(**change) -> QuestionSettings:
        return SETTINGS.model_copy(update=change)

    def sample() -> list[Item]:
        return [Item("key", {"txt": b"a raw text"}, {"short": ["a dog", "a cat"], "sv": "a cow", "vqa": OLD})]

    items = sample()
    assert annotate_questions(echo, changed(index=1, replace=True), items)["pairs"] == 1 and answers(items) == ["a cat"]
    items = sample()
    counts = annotate_questions(echo, changed(index=2, replace=True), items)
    assert counts == {"without_caption": 1} and answers(items) == [None]
    fields = FieldMap(short="sv", vqa="asked")
    items = sample()
    annotate_questions(echo, changed(fields=fields), items)
    assert answers(items, "asked") == ["a cow"] and items[0].annotations["vqa"] == OLD
    items = sample()
    annotate_questions(echo, changed(captions="raw", replace=True), items)
    assert answers(items) == ["a raw text"]


# ---- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three samples with a picture each; the last of each has no caption."""
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for number in range(3):
                name = f"{shard}-{number}"
                texts = {"short": f"animal {name}", "vqa": OLD} if number == 0 else {"short": f"animal {name}"}
                annotations = json.dumps({"url": name} | (texts if number < 2 else {})).encode()
                tar.write({"__key__": name, "jpg": name.encode(), "txt": b"raw", "json": annotations})
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All prompts that the command line sends; the model is `echo`, and needs no tokenizer."""
    from vlp.annotation import generation

    prompts: list[str] = []
    monkeypatch.setattr(generation, "load_tokenizer", lambda settings: None)
    monkeypatch.setattr(
        questions, "load_generator", lambda *settings: lambda texts: prompts.extend(texts) or echo(texts)
    )
    return prompts


def test_the_command_line_writes_pairs_and_goes_on(
    shards: Path,
    asked: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlp.data.shards.RETRY_SECONDS", ())
    out = tmp_path / "out"
    broken = shards / "00002.tar"
    broken.write_bytes(b"no tar" * 200)
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", out) == 2
    assert "1 of 3 shards" in capsys.readouterr().err
    assert [make_prompt(f"animal {shard}-1") for shard in range(2)] == asked
    asked.clear()
    broken.unlink()
    before = (out / "00000.tar").stat().st_mtime_ns
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", out) == 0
    assert asked == [] and (out / "00000.tar").stat().st_mtime_ns == before
    counts = {"annotated": 2, "had_pairs_already": 2, "pairs": 2, "samples": 6, "without_caption": 2}
    assert json.loads((out / "summary.json").read_text()) == {"shards": 2} | counts
    printed = ", ".join(f"{name} {count}" for name, count in counts.items())
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: 2 shards, {printed}"
    for shard in range(2):
        samples = list(read_shard(str(out / f"{shard:05d}.tar")))
        names = [f"{shard}-{number}" for number in range(3)]
        assert [sample["jpg"].decode() for sample in samples] == [s["__key__"] for s in samples] == names
        assert [json.loads(sample["json"]) for sample in samples] == [
            {"url": names[0], "short": f"animal {names[0]}", "vqa": OLD},
            {
                "url": names[1],
                "short": f"animal {names[1]}",
                "vqa": [{"question": "What is it?", "answer": f"animal {names[1]}"}],
            },
            {"url": names[2]},
        ]
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", out, "--batch-size", "7", "--backend", "transformers") == 0
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", out, "--captions", "raw") == 2
    assert "shards made with captions=short, not raw; give another folder" in capsys.readouterr().err


def test_the_command_line_says_when_the_fields_are_wrong(
    shards: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", tmp_path / "a", "--fields", "short=sv", "vqa=new") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "no sample has a short caption 0; name their key with --fields, as short=KEY, or another kind with --captions"
    )
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", tmp_path / "b", "--fields", "raw=no,url", "--captions=raw",
                    "--replace") == 0  # fmt: skip
    assert Counter(asked) == {make_prompt(f"{shard}-{number}"): 1 for shard in range(2) for number in range(3)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fields", "short"], "--fields short: give KIND=KEY with KIND raw, short, long"),
        (["--fields", "short="], "--fields short=: give KIND=KEY"),
        (
            ["--fields", "short=a", "shrot=b"],
            "img2dataset, dreamlip, recap_datacomp, pixelprose, plain; did you mean 'short'?",
        ),
        (["--fields", "vqa=a,b"], "--fields vqa=a,b: vqa is one key"),
        (["--index", "-1"], "--index -1: Input should be greater than or equal to 0"),
        (["--max-answer-words", "0"], "--max-answer-words 0: Input should be greater than or equal to 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: "),
        (["--context", "-5"], "--context -5: "),
        (["--temperature", "-0.5"], "--temperature -0.5: "),
        (["--temperature", "nan"], "--temperature nan: "),
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--actors", "0"], "--actors 0: give 1 or more"),
        (["--gpus-per-actor", "-1"], "--gpus-per-actor -1: give 0 or more"),
        (["--gpus-per-actor", "nan"], "--gpus-per-actor nan: give 0 or more"),
        (["/nowhere/*.tar"], "matches no shard"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], says: str, shards: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_tool(TOOL, f"{shards}/*.tar", *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert asked == [] and not (tmp_path / "out").exists()
