"""Vision and text tower against open_clip's and against timm's parts put together by hand."""

import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn.functional import interpolate

from vlp.data.tokens import END, START, VOCABULARY, tokenize
from vlp.models.text import TextTower
from vlp.models.vision import VisionTower
from vlp.settings import DataSettings, TextSettings, VisionSettings

# ---- text -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> TextTower:
    torch.manual_seed(0)
    tower = TextTower(TextSettings(width=24, layers=3, heads=2), 16)
    nn.init.normal_(tower.positional_embedding)
    return tower.eval()


@pytest.fixture(scope="module")
def reference(text: TextTower) -> TextTransformer:
    other = TextTransformer(
        context_length=77, vocab_size=VOCABULARY, width=24, heads=2, layers=3, output_dim=16, output_tokens=True
    )
    other.load_state_dict(text.state_dict())
    return other.eval()


def captions(lengths: list[int], width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(sum(lengths))
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[1 + length] = START, END
        row[1 : 1 + length] = torch.randint(0, START, (length,), generator=rng)
    return ids


@pytest.mark.parametrize("lengths", [[0], [75], [3, 0, 14], [75, 1, 40]])
def test_text_tower_is_open_clips_at_any_cut(lengths: list[int], text: TextTower, reference: TextTransformer) -> None:
    longest = max(lengths) + 2
    with torch.no_grad():
        pooled, tokens = reference(captions(lengths, 77))
        for width in {longest, min(77, -8 * (-longest // 8)), 77}:
            our_tokens, embeds = text(captions(lengths, 77)[:, :width])
            assert our_tokens.shape == (len(lengths), width, 24)
            torch.testing.assert_close(embeds, pooled, rtol=1e-5, atol=1e-5)
            for ours, expected, length in zip(our_tokens, tokens, lengths, strict=True):
                torch.testing.assert_close(ours[: length + 2], expected[: length + 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("texts", [1, 7, 8, 9, 30])
def test_any_number_of_texts_of_uneven_lengths(texts: int, text: TextTower, reference: TextTransformer) -> None:
    """However the tower cuts and sorts the texts of one pass: each one's tokens up to its end, values and gradients
    of the weights, in the order given."""
    lengths = [(37 * row) % 76 for row in range(texts)]
    ids = captions(lengths, 77)
    longest = max(lengths) + 2
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None] + 2
    weight = torch.randn(texts, longest, 24) * inside[..., None]  # zero behind the end tokens
    text.zero_grad()
    reference.zero_grad()
    tokens, embeds = text(ids[:, :longest])
    pooled, expected = reference(ids)
    assert tokens.shape == (texts, longest, 24)
    torch.testing.assert_close(embeds, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[inside], expected[:, :longest][inside], rtol=1e-5, atol=1e-5)
    ((tokens * weight).sum() + embeds.sum()).backward()
    ((expected[:, :longest] * weight).sum() + pooled.sum()).backward()
    others = dict(reference.named_parameters())
    for name, parameter in text.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=1e-3, atol=1e-3, msg=name)
    text.zero_grad()


@pytest.mark.parametrize("words", [70, 71, 74, 75, 76, 200])
def test_captions_as_long_as_the_context_pass_the_text_tower(words: int, text: TextTower, reference) -> None:
    """The loader rounds lengths up to a multiple of 8; the context, 77, is none."""
    for texts in (["cat " * words, "a cat"], ["cat " * words, "a cat"] * 10):
        ids = tokenize(texts, 77)
        padded = torch.zeros(len(texts), 77, dtype=torch.int64)
        padded[:, : ids.shape[1]] = ids[:, :77]
        assert (padded == END).any(1).all()
        with torch.no_grad():
            torch.testing.assert_close(text(ids)[1], reference(padded)[0], rtol=1e-5, atol=1e-5)


def test_text_tower_is_causal(text: TextTower) -> None:
    ids = captions([12], 14)
    changed = ids.clone()
    changed[0, 7] = 123
    with torch.no_grad():
        first, second = text(ids)[0], text(changed)[0]
    torch.testing.assert_close(first[:, :7], second[:, :7], rtol=0, atol=1e-6)
    assert (first[:, 7:] - second[:, 7:]).abs().amax(-1).min() > 1e-4


def test_padding_takes_no_gradient(text: TextTower) -> None:
    """The embedding at the end token reads no position behind it."""
    text.zero_grad()
    text(captions([3, 5], 16))[1].sum().backward()
    assert text.positional_embedding.grad[:7].any(1).all()
    assert not text.positional_embedding.grad[7:].any()
    text.zero_grad()


# ---- vision -----------------------------------------------------------------------------------------------------


def vision(pooling: str = "cls") -> VisionTower:
    torch.manual_seed(1)
    settings = VisionSettings(image_size=32, patch_size=8, width=32, depth=2, heads=2, pooling=pooling)
    tower = VisionTower(settings, DataSettings()).eval()
    nn.init.normal_(tower.vit.pos_embed)
    return tower


def by_hand(tower: VisionTower, pixels: torch.Tensor, interpolated: bool) -> torch.Tensor:
    """Patches, class token, positions (bicubic to the new grid), norm, blocks, last norm."""
    vit = tower.vit
    x = nn.functional.conv2d(pixels, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=8)
    grid = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    positions = vit.pos_embed[0]
    first, square = positions[: tower.prefix], positions[tower.prefix :]
    if interpolated:
        square = square.T.reshape(1, -1, 4, 4)
        square = interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
        square = square[0].flatten(1).T
    if tower.prefix:
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1)
    x = vit.norm_pre(x + torch.cat([first, square]))
    for block in vit.blocks:
        x = block(x)
    return vit.norm(x)


@pytest.mark.parametrize("pooling", ["cls", "average"])
@pytest.mark.parametrize("size", [32, 16, 48, 8])
def test_vision_tower_at_other_sizes(size: int, pooling: str) -> None:
    tower = vision(pooling)
    patches = (size // 8) ** 2
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    normal = (pixels.float() / 255 - mean) / std
    with torch.no_grad():
        tokens = tower(pixels)
        assert tokens.shape == (3, patches + (pooling == "cls"), 32)
        torch.testing.assert_close(tokens, by_hand(tower, normal, size != 32), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tower(normal), tokens)  # float pixels are taken as normalised
    assert tower.patches(tokens).shape == (3, patches, 32)
    expected = tokens[:, 0] if pooling == "cls" else sum(tokens[:, p] for p in range(patches)) / patches
    torch.testing.assert_close(tower.pool(tokens), expected)


def test_last_norm_is_applied_to_every_token() -> None:
    tower = vision()
    nn.init.constant_(tower.vit.norm.bias, 7.0)
    nn.init.constant_(tower.vit.norm.weight, 0.0)
    with torch.no_grad():
        tokens = tower(torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(tokens, torch.full_like(tokens, 7.0))


def test_average_pooling_has_no_class_token() -> None:
    assert vision("average").prefix == 0
    assert vision("average").vit.cls_token is None
    assert vision("average").vit.pos_embed.shape[1] == 16


# ---- some patches -----------------------------------------------------------------------------------------------


def other_pixels(pictures: torch.Tensor, place: int) -> torch.Tensor:
    """The pictures with other pixels in one of their 8 x 8 patches."""
    y, x = (8 * part for part in divmod(place, pictures.shape[-1] // 8))
    changed = pictures.clone()
    changed[:, :, y : y + 8, x : x + 8] = 255 - changed[:, :, y : y + 8, x : x + 8]
    return changed


@pytest.mark.parametrize("pooling", ["cls", "average"])
@pytest.mark.parametrize("size", [32, 16])
def test_keeping_or_masking(size: int, pooling: str) -> None:
    """All patches kept and none masked is the plain pass. A patch that is left out or masked does not matter, the
    others do; kept ones take their positions with them, in whatever order they come."""
    tower, patches = vision(pooling).double(), (size // 8) ** 2
    pictures = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    kept = torch.tensor([[0, 2, 3], [1, 2, 3]])
    token = torch.randn(32, dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-12}
    with torch.no_grad():
        everything = torch.arange(patches).expand(2, -1)
        torch.testing.assert_close(tower(pictures, everything), tower(pictures), **close)
        torch.testing.assert_close(tower(pictures, masked=(kept[:, :0], token)), tower(pictures), **close)
        dropped, masked = tower(pictures, kept), tower(pictures, masked=(kept, token))
        assert dropped.shape == (2, 3 + tower.prefix, 32)
        assert masked.shape == tower(pictures).shape
        for place in range(4):
            changed = other_pixels(pictures, place)
            moved = (tower(changed, kept) - dropped).abs().amax((1, 2)) > 1e-6
            assert moved.tolist() == [place in row for row in kept.tolist()]
            moved = (tower(changed, masked=(kept, token)) - masked).abs().amax((1, 2)) > 1e-6
            assert moved.tolist() == [place not in row for row in kept.tolist()]
        moved = (tower(pictures, masked=(kept, -token)) - masked).abs().amax((1, 2)) > 1e-6
        assert moved.all()
        backwards = tower(pictures, kept.flip(1))
        torch.testing.assert_close(tower.patches(backwards).flip(1), tower.patches(dropped), **close)


def test_how_many_patches_are_kept() -> None:
    tower, pictures = vision(), torch.zeros(1, 3, 48, 32)
    assert (tower.patches_of(pictures), tower.kept_of(pictures)) == (24, (24, 24))
    for dropout, kept in ((0.5, 12), (0.9, 2), (0.99, 1)):
        tower.patch_dropout = dropout
        assert tower.kept_of(pictures) == (24, kept)
