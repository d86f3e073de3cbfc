"""Where published sets of captions keep what: keys of their samples' JSON, which are columns of their tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The keys of each kind of caption, and the column of the picture's URL."""

    url: str
    columns: dict[str, tuple[str, ...]]


LAYOUTS = {
    # img2dataset's own shards and metadata; the caption file is the key `txt`
    "img2dataset": Layout("url", {"raw": ("txt", "caption")}),
    # huggingface.co/datasets/qidouxiong619/dreamlip_long_captions, *_3long_3short_1raw_captions_url.csv
    "dreamlip": Layout(
        "Image Path",
        {
            "raw": ("raw_caption",),
            "short": ("shortIB_captions", "shortSV_captions", "shortLLA_captions"),
            "long": ("longIB_captions", "longSV_captions", "longLLA_captions"),
        },
    ),
    # huggingface.co/datasets/UCSC-VLAA/Recap-DataComp-1B
    "recap_datacomp": Layout("url", {"raw": ("org_caption",), "long": ("re_caption",)}),
    # huggingface.co/datasets/tomg-group-umd/pixelprose
    "pixelprose": Layout("url", {"raw": ("original_caption",), "long": ("vlm_caption",)}),
    # this project's names, or a table of one's own with them
    "plain": Layout("url", {"raw": ("raw", "caption"), "short": ("short",), "long": ("long",)}),
}
