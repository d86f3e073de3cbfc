"""Pictures to views: decoding of every kind of file, crops, and boxes that follow their crop."""

import io
import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from vlp.data import views
from vlp.data.shards import BadSample
from vlp.data.views import WHOLE, Crop, center_crop, crop_box, decode_image, random_crop, render, render_view
from vlp.settings import ViewSettings

ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def left_and_right(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    return [image.getpixel((x, height // 2)) for x in (width // 4, 3 * width // 4)]


# ---- decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_colours_come_back(format: str) -> None:
    options = {"quality": 100} | ({"subsampling": 0} if format == "JPEG" else {})
    image = decode_image(encoded(halves(), format, **options), 32)
    assert image.mode == "RGB"
    np.testing.assert_allclose(left_and_right(image), [(255, 0, 0), (0, 0, 255)], atol=6)


def test_grayscale_and_sixteen_bits() -> None:
    levels = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.uint16) * 256)):
        pixels = np.asarray(decode_image(encoded(image), 64))
        assert (pixels == levels[:, :, None]).all()
    assert np.asarray(decode_image(encoded(Image.fromarray(levels), "JPEG"), 64)).shape == (64, 64, 3)


def test_palette_and_transparency_on_white() -> None:
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE)
    assert left_and_right(decode_image(encoded(palette), 32)) == [(255, 0, 0), (0, 0, 255)]
    clear = halves().convert("RGBA")
    clear.paste((0, 255, 0, 0), (32, 0, 64, 32))
    assert left_and_right(decode_image(encoded(clear), 32)) == [(255, 0, 0), (255, 255, 255)]
    with_clear_colour = encoded(palette, transparency=palette.getpixel((60, 5)))
    assert left_and_right(decode_image(with_clear_colour, 32)) == [(255, 0, 0), (255, 255, 255)]
    assert decode_image(encoded(Image.new("LA", (8, 8), (0, 0))), 8).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk() -> None:
    image = decode_image(encoded(halves().convert("CMYK"), "JPEG", quality=100, subsampling=0), 32)
    np.testing.assert_allclose(left_and_right(image), [(255, 0, 0), (0, 0, 255)], atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_pictures_stand_upright(orientation: int) -> None:
    upright = halves()
    inverse = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    inverse |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = upright.transpose(Image.Transpose[inverse[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode_image(encoded(stored, "JPEG", exif=exif, quality=100, subsampling=0), 32)
    assert image.size == upright.size
    np.testing.assert_allclose(left_and_right(image), [(255, 0, 0), (0, 0, 255)], atol=6)


@pytest.mark.parametrize(("side", "size", "decoded"), [(512, 64, 64), (500, 224, 250), (100, 64, 100), (64, 224, 64)])
def test_jpeg_is_decoded_at_the_smallest_scale_that_covers_the_view(side: int, size: int, decoded: int) -> None:
    assert decode_image(encoded(halves(side, side), "JPEG"), size).size == (decoded, decoded)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_or_foreign_file_is_a_bad_sample(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, format)
    for data in (b"", b"no picture", whole[:20], whole[: len(whole) // 2]):
        with pytest.raises(BadSample, match=r"^undecodable_image$"):
            decode_image(data, 32)


@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255))))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_broken_bytes_decode_or_are_a_bad_sample(format: str, changes: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = bytearray(encoded(halves(), format, exif=exif))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(BadSample):
        assert decode_image(bytes(data), 16).mode == "RGB"


# ---- crops ------------------------------------------------------------------------------------------------------


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (20_000, 8_000)), "PNG")
    assert len(bomb) < 30_000
    with pytest.raises(BadSample, match="image_too_large"):
        decode_image(bomb, 32)
    with pytest.raises(BadSample, match="undecodable_image"):  # what Pillow itself refuses
        decode_image(encoded(Image.new("1", (40_000, 16_000)), "PNG"), 32)
    monkeypatch.setattr(views, "MAX_PIXELS", 300)
    assert decode_image(encoded(halves(64, 32), "JPEG"), 8).size == (16, 8)  # draft decoding makes it small enough


sides = st.integers(1, 600)
scales = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda ends: tuple(sorted(ends)))


@given(sides, sides, scales, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_inside(width: int, height: int, scale: tuple[float, float], seed: int) -> None:
    crop = random_crop(width, height, scale, np.random.default_rng(seed))
    assert 0 <= crop.left < crop.right <= 1 + 1e-9 and 0 <= crop.top < crop.bottom <= 1 + 1e-9
    w, h = (crop.right - crop.left) * width, (crop.bottom - crop.top) * height
    assert all(abs(side - round(side)) < 1e-6 for side in (w, h, crop.left * width, crop.top * height))
    assert round(w) - 1 <= 4 / 3 * (round(h) + 1) and round(w) + 1 >= 3 / 4 * (round(h) - 1)  # to whole pixels
    assert render(Image.new("RGB", (width, height)), crop, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(400, 400), (500, 375), (300, 500), (600, 300)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.4, 1.0), (0.05, 0.4)])
def test_crops_are_distributed_as_torchvision_s(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Quantiles of area, aspect and place over many draws, fallbacks among them."""
    width, height = size
    rng, draws = np.random.default_rng(0), 3000
    ours = [random_crop(width, height, scale, rng) for _ in range(draws)]
    ours = np.array([[c.left, c.top, c.right, c.bottom] for c in ours])
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    found = [RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(draws)]
    theirs = np.array([[x / width, y / height, (x + w) / width, (y + h) / height] for y, x, h, w in found])

    def describe(crops: np.ndarray) -> np.ndarray:
        w, h = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
        features = np.stack([w * h, np.log(w * width / (h * height)), *crops.T])
        return np.quantile(features, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)

    np.testing.assert_allclose(describe(ours), describe(theirs), atol=0.035)


def test_the_centre_is_a_square_of_the_shorter_side() -> None:
    assert center_crop(200, 100) == Crop(0.25, 0, 0.75, 1)
    assert center_crop(100, 100) == WHOLE
    assert center_crop(100, 400) == Crop(0, 0.375, 1, 0.625)


@given(sides, sides, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_view_is_pillow_s_to_rounding(width: int, height: int, size: int) -> None:
    rng = np.random.default_rng(width * 601 + height)
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    crop = random_crop(width, height, (0.3, 1.0), rng)
    edges = (crop.left * width, crop.top * height, crop.right * width, crop.bottom * height)
    theirs = smooth.crop(tuple(map(round, edges))).resize((size, size), Image.Resampling.BICUBIC)
    ours = render(np.array(smooth), crop, size)
    assert np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(theirs)).max() <= 3
    assert (ours == render(smooth, crop, size)).all() and ours.flags.c_contiguous
    assert (render(smooth, replace(crop, mirrored=True), size) == ours[:, :, ::-1]).all()


def test_a_flip_mirrors() -> None:
    image = halves()
    rng = np.random.default_rng
    view, mirrored = (render_view(image, 16, (1.0, 1.0), ViewSettings(flip=flip), rng(0)) for flip in (0, 1))
    assert view.dtype == np.uint8 and view.flags.c_contiguous and mirrored.flags.c_contiguous
    assert (view[:, :, ::-1] == mirrored).all() and (view != mirrored).any()


# ---- colour and sharpness ---------------------------------------------------------------------------------------

NOISE = Image.fromarray(np.random.default_rng(7).integers(0, 256, (24, 24, 3), dtype=np.uint8))
CHANGES = ("jitter", "grayscale", "blur")


def changed_view(seed: int, **settings: float) -> np.ndarray:
    return render_view(NOISE, 24, (0.9, 1.0), ViewSettings(flip=0, **settings), np.random.default_rng(seed))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_depends_on_the_generator_alone_and_comes_with_its_probability(change: str) -> None:
    plain = [changed_view(seed) for seed in range(300)]
    views = [changed_view(seed, **{change: 0.3}) for seed in range(300)]
    assert all(view.dtype == np.uint8 and view.shape == (3, 24, 24) and view.flags.c_contiguous for view in views)
    assert all((changed_view(seed, **{change: 0.3}) == views[seed]).all() for seed in range(30))
    changed = [(one != other).any() for one, other in zip(plain, views, strict=True)]  # of the same crop
    assert abs(np.mean(changed) - 0.3) < 0.1
    always = [changed_view(seed, **{change: 1.0}) for seed in range(20)]
    assert all((one != other).any() for one, other in zip(plain, always, strict=False))


def test_what_each_change_does() -> None:
    plain, jitter, gray, blur = (changed_view(1, **change) for change in ({}, *({name: 1.0} for name in CHANGES)))
    assert (gray == gray[:1]).all()  # three equal channels of the same brightness
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[0], np.tensordot(weights, plain.astype(float), 1), atol=1)

    def roughness(view: np.ndarray) -> float:
        return np.abs(np.diff(view.astype(float), axis=2)).mean()

    seeds = range(20)
    blurred = np.mean([roughness(changed_view(seed, blur=1.0)) for seed in seeds])
    assert blurred < 0.7 * np.mean([roughness(changed_view(seed)) for seed in seeds])
    assert abs(blur.mean() - plain.mean()) < 3
    assert len({changed_view(seed, jitter=1.0).tobytes() for seed in range(20)}) == 20
    assert (jitter != jitter[:1]).any()


def test_a_change_of_probability_zero_draws_nothing() -> None:
    """So a recipe without colour changes sees the same crops as before there were any."""
    view, manual = np.random.default_rng(3), np.random.default_rng(3)
    render_view(NOISE, 24, (0.4, 1.0), ViewSettings(), view)
    random_crop(*NOISE.size, (0.4, 1.0), manual)
    manual.random()  # the mirror
    assert view.bit_generator.state == manual.bit_generator.state


# ---- boxes ------------------------------------------------------------------------------------------------------

edges = st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True).map(sorted)


@given(edges, edges, st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_drawn_box_is_where_its_crop_says(columns: list[int], rows: list[int], seed: int) -> None:
    """White rectangle in a black picture: its box in the crop is the white part of the rendered view."""
    side, size = 60, 240
    image = Image.new("RGB", (side, side))
    image.paste((255, 255, 255), (columns[0], rows[0], columns[1], rows[1]))
    crop = random_crop(side, side, (0.3, 1.0), np.random.default_rng(seed))
    box = [edge / side for edge in (columns[0], rows[0], columns[1], rows[1])]
    found = crop_box(box, crop)
    white = render(image, crop, size)[0] > 127
    shown = (white.sum() / size**2) * (crop.right - crop.left) * (crop.bottom - crop.top)
    visible = shown / ((box[2] - box[0]) * (box[3] - box[1]))
    if found is None:
        assert visible < 0.5 + 0.2
        return
    assert visible > 0.5 - 0.2
    y, x = np.nonzero(white)
    pixels = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(np.array(found) * size - pixels).max() <= 3


def test_a_box_is_mirrored_with_its_crop() -> None:
    image = Image.new("RGB", (80, 40))
    image.paste((255, 255, 255), (10, 8, 30, 24))
    crop = Crop(0, 0, 0.75, 1, mirrored=True)  # 60 wide: the box is 10 to 30 of it, mirrored 30 to 50
    found = crop_box([10 / 80, 8 / 40, 30 / 80, 24 / 40], crop)
    assert found == pytest.approx((30 / 60, 8 / 40, 50 / 60, 24 / 40))
    y, x = np.nonzero(render(image, crop, 60)[0] > 127)
    np.testing.assert_allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], np.array(found) * 60, atol=1)


def test_a_box_needs_half_of_itself_in_the_crop() -> None:
    crop = Crop(0.5, 0, 1, 1)
    assert crop_box([0.25, 0, 0.75, 1], crop) == (0, 0, 0.5, 1)
    assert crop_box([0.24, 0, 0.75, 1], crop) is None
    assert crop_box([0, 0, 0.5, 1], crop) is None
    assert crop_box([0, 0, 1, 1], crop, least_visible=0.6) is None
    assert crop_box((0.6, 0.1, 0.7, 0.2), WHOLE) == (0.6, 0.1, 0.7, 0.2)


wild = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([0, 1, 0.5, "0.1"])
)


@given(wild | st.lists(wild, max_size=6) | st.dictionaries(st.text(), wild), st.integers(0, 3))
@example([0.1, 0.1, 0.9, math.nan], 0)
@example([0.1, 0.1, 0.9, math.inf], 0)
@example([0.9, 0.1, 0.1, 0.9], 0)
@example([0.1, 0.1, 0.1, 0.9], 0)
@example(["0.1", "0.1", "0.9", "0.9"], 0)
@example("0011", 0)
@example([False, False, True, True], 0)
@example([0, 0, 10**400, 1], 0)
@example([0, 0, 1e-300, 1e-300], 0)
@example([-0.1, 0, 0.5, 0.5], 0)
@example([0.1, 0.1, 0.9], 0)
@settings(max_examples=300)
def test_a_wild_box_is_none_or_inside(box, seed: int) -> None:
    found = crop_box(box, random_crop(100, 100, (0.3, 1.0), np.random.default_rng(seed)))
    if found is not None:
        assert isinstance(box, list) and all(type(edge) in (int, float) for edge in box) and len(box) == 4
        assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
        assert 0 <= found[0] <= found[2] <= 1 + 1e-9 and 0 <= found[1] <= found[3] <= 1 + 1e-9


@pytest.mark.parametrize(
    "box", ["0011", [False, False, True, True], ["0", "0", "1", "1"], [0, 0, 10**400, 1], [1, 1, 0, 0]]
)
def test_what_is_no_box_has_no_place(box) -> None:
    assert crop_box(box, WHOLE) is None
