"""What each problem means and how it is mended."""

from dataclasses import dataclass

from vlp.data.captions import LONGEST


@dataclass(frozen=True)
class Problem:
    """`warn_above` is the share of cases above which it is a warning and no longer a note; 1 is always a note."""

    what: str
    mend: str
    warn_above: float = 0.0


SKIPPED = {
    "no_image": Problem(
        "no picture; the sample is skipped",
        "a sample needs one of the files .jpg, .jpeg, .png, .webp; convert others, or drop the sample",
    ),
    "undecodable_image": Problem(
        "the picture does not decode; the sample is skipped", "download these again, or drop them from the shards"
    ),
    "unreadable_json": Problem(
        "the .json is no JSON; the sample is skipped", "write it again; tools/prepare_captions.py keeps it as it is"
    ),
    "json_is_not_an_object": Problem(
        "the .json is no object; the sample is skipped",
        'write an object: {"short": ["a cat"], ...}; captions alone belong in .txt',
    ),
    "image_too_large": Problem(
        "more pixels than are decoded; the sample is skipped",
        "make them smaller (img2dataset: --image_size), or drop them",
    ),
    "unsafe_name": Problem(
        "the key leads out of its folder; the sample is skipped", "a key begins without / and holds no .. part"
    ),
}
"""By the reason of `BadSample`."""

CAPTIONS = {
    "caption_not_text": Problem(
        "neither text nor a list of texts; not read", "write strings; tools/prepare_captions.py joins them from a table"
    ),
    "caption_empty": Problem("empty; not read", "drop them where they are written, or join others by prepare_captions"),
    "caption_very_long": Problem(
        f"longer than {LONGEST:,} characters, of which no more are read",
        "is it a whole web page? clean it, or name another key in data.fields",
    ),
    "caption_control_characters": Problem(
        "holds NUL or other control characters, which are read as spaces", "look at where they come from", 0.02
    ),
    "caption_not_utf8": Problem(
        "holds characters that were no UTF-8", "write the captions again as UTF-8; the source was read in another code"
    ),
    "caption_repeated": Problem(
        "the same text for many images, which contrast takes for different",
        "drop samples with it (placeholder, failed caption, boilerplate), or caption them anew: "
        "tools/prepare_captions.py",
        0.02,
    ),
    "caption_without_sentence": Problem(
        "splitting into sentences leaves nothing", "drop such captions; they hold nothing but punctuation"
    ),
    "caption_in_one_sentence": Problem(
        "longer than the text tower's context, yet one sentence",
        "look at how sentences end in these captions: new lines, </s> and full stops do",
        0.02,
    ),
    "sentence_of_one_word": Problem(
        "a single word", "look at the captions: lists, abbreviations and headings split into pieces", 0.05
    ),
}

REGIONS = {
    "regions_not_list": Problem(
        "data.fields.regions is no list; not read",
        'write [{"box": [0.1, 0.2, 0.5, 0.6], "phrase": "a cat"}, ...]; tools/prepare_regions.py does',
    ),
    "region_not_object": Problem("no object; not used", 'write {"box": [...], "phrase": "a cat"}'),
    "region_without_phrase": Problem("no phrase; not used", "every region needs its phrase; tools/prepare_regions.py"),
    "score_not_number": Problem(
        "the score is no finite number; not used", "write a number from 0 to 1, or leave it out"
    ),
    "box_not_four_numbers": Problem(
        "the box is not four numbers; not used", "write [left, top, right, bottom] as fractions of width and height"
    ),
    "box_not_finite": Problem("the box holds NaN or infinity; not used", "drop these regions"),
    "box_in_pixels": Problem(
        "the box has edges far above 1, as pixel coordinates have; not used",
        "divide left and right by the picture's width, top and bottom by its height",
    ),
    "box_outside": Problem(
        "the box reaches out of the picture; not used", "clip the edges to 0 and 1 where boxes are written"
    ),
    "box_reversed": Problem(
        "the box is reversed (right before left, or bottom above top); not used",
        "write [left, top, right, bottom]; from [x, y, width, height]: right = x + width, bottom = y + height",
    ),
    "box_without_area": Problem("the box has no area; not used", "drop these regions"),
    "box_tiny": Problem("the box is less than one pixel of the model's view", "drop these regions", 0.05),
    "box_low_score": Problem(
        "scored below data.box_score; not used", "nothing, or lower data.box_score if too few are left", 1.0
    ),
}

QUESTIONS = {
    "vqa_not_list": Problem(
        "data.fields.vqa is no list; not read",
        'write [{"question": "what?", "answer": "a cat"}, ...]; tools/prepare_vqa.py does',
    ),
    "question_not_object": Problem("no object; not used", 'write {"question": "what?", "answer": "a cat"}'),
    "question_empty": Problem("no question; not used", "drop these pairs; tools/prepare_vqa.py keeps only whole ones"),
    "question_without_answer": Problem(
        "a question without an answer; not used", "drop these pairs; tools/prepare_vqa.py keeps only whole ones"
    ),
    "answer_not_text": Problem("the answer is no text; not used", 'write "3", not 3'),
}

PICTURES = {
    "picture_small": Problem(
        "smaller than the model's input; enlarged, and blurred by it",
        "drop them or take larger ones (img2dataset: --min_image_size), or lower model.vision.image_size",
        0.05,
    ),
    "picture_extreme_aspect": Problem(
        "a side over three times the other; a crop shows less than half",
        "drop them (img2dataset: --max_aspect_ratio 3)",
        0.02,
    ),
    "picture_repeated": Problem(
        "the same picture as other samples",
        "drop duplicates; a frequent one is often a placeholder ('image not available')",
        0.01,
    ),
}

PROMPTS = {
    "prompt_cut": Problem(
        "prompt and answer are longer than the context; the answer's end is lost",
        "shorter answers or captions, or a larger model.text.context_length",
        0.1,
    ),
    "answer_lost": Problem(
        "the prompt fills the context; nothing of the answer is left",
        "shorter prompts or phrases, or a larger model.text.context_length",
    ),
}

CATALOGUE = SKIPPED | CAPTIONS | REGIONS | QUESTIONS | PICTURES | PROMPTS | {
    "caption_cut": Problem(
        "longer than the text tower's context; the rest is lost",
        "captions: diverse or sentence reads parts of long captions; or a larger model.text.context_length",
        0.1,
    ),
    "duplicate_key": Problem(
        "the key of another sample: both draw the same crops, and joins by key mix them up",
        "give each sample a key of its own (img2dataset's are unique within one data set)",
    ),
}  # fmt: skip
