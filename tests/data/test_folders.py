"""data/folders.py: folders of pictures, through the one door."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.data.files import load_files
from scratchgen.data.folders import ATTRIBUTES, folder_labels, list_pictures, read_attributes
from scratchgen.data.formats import DataError
from scratchgen.testing.strategies import seeds

import by_hand
from by_hand import placed
from support import some_codes

FLAT = by_hand.png(np.full((4, 4), 7, np.uint8))


def pictured(folder, size, **options):
    """All pictures of a folder in the order of their names: codes and labels."""
    parts = [load_files(folder, part, size, **options) for part in ("train", "test")]
    codes, labels = (np.concatenate([getattr(p, a) for p in parts]) for a in ("codes", "labels"))
    back = np.argsort(np.random.default_rng(0).permutation(len(codes)))
    return codes[back], labels[back]


def of_pngs(folder, pixels, size, **options):
    """What becomes of pixels saved as PNG."""
    files = {f"{i}.png": by_hand.png(one) for i, one in enumerate(pixels)}
    return pictured(placed(folder, files), size, **options)[0]


def test_every_kind_of_picture_is_read(tmp_path):
    rgb = some_codes(0, 8, 8, 3)
    palette, places = bytes(range(12)), some_codes(1, 8, 8) % 4
    bits = some_codes(2, 8, 8) % 2
    folder = placed(
        tmp_path,
        {
            "a.png": by_hand.png(rgb),
            "b.bmp": by_hand.bmp(rgb),
            "c.jpg": by_hand.jpeg(200),
            "d.JPEG": by_hand.jpeg(255),
            "e.webp": by_hand.webp(8, 8, (1, 20, 255)),
            "f.png": by_hand.png(places, palette),
            "g.png": by_hand.png(bits, depth=1),
            "h.png": by_hand.png(rgb[..., 0]),
            "note.txt": b"no picture",
            ".hidden.png": b"nothing",
            ".hidden/a.png": b"nothing",
        },
    )
    codes, labels = pictured(folder, 8, colour=True)
    grey = np.ones((8, 8, 3))
    expected = [rgb, rgb, 200 * grey, 255 * grey, [1, 20, 255] * grey]
    expected += [3 * places[..., None] + [0, 1, 2], 255 * bits[..., None] * grey]
    np.testing.assert_array_equal(codes, [*expected, rgb[..., :1] * grey])
    assert not labels.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_opacity_is_left_out_where_it_is_whole(tmp_path, channels):
    codes = some_codes(0, 3, 4, 4, channels)
    opaque = np.concatenate([codes, np.full((3, 4, 4, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(of_pngs(tmp_path, opaque, 4), codes)


def test_colours_of_a_palette_may_not_be_transparent(tmp_path):
    palette, places = bytes(range(12)), some_codes(1, 4, 4) % 4
    whole = by_hand.png(places, palette)
    cut = whole.index(b"IDAT") - 4  # where that chunk begins, with its length

    def opaque(*opacity):
        return whole[:cut] + by_hand.png_chunk(b"tRNS", bytes(opacity)) + whole[cut:]

    assert "some of it is transparent" in refused(tmp_path / "clear", opaque(255, 254))
    folder = placed(tmp_path / "opaque", {f"{i}.png": opaque(255, 255) for i in range(3)})
    codes, _ = pictured(folder, 4)
    np.testing.assert_array_equal(codes[0], 3 * places[..., None] + [0, 1, 2])


@given(seeds(), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_pictures_are_cut_to_the_square_in_the_middle_and_shrunk(
    tmp_path_factory, seed, size, step, wide, colour
):
    side, folder = size * step, tmp_path_factory.mktemp("pictures")
    pixels = some_codes(seed, 3, side, side + 3, 3 if colour else 1)
    pixels = pixels if wide else pixels.swapaxes(1, 2)
    codes = of_pngs(folder, pixels, size)
    middle = pixels[:, :, 1 : side + 1] if wide else pixels[:, 1 : side + 1]
    means = middle.reshape(3, size, step, size, step, -1).mean(axis=(2, 4))
    # Pillow rounds after either axis
    np.testing.assert_allclose(codes, means, atol=0.0 if step == 1 else 1.0)


def test_blocks_of_one_colour_shrink_to_it(tmp_path):
    codes = some_codes(0, 3, 5, 5, 3)
    blocks = codes.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(of_pngs(tmp_path, blocks, 5, crop="none"), codes)


def test_celeba_is_cut_to_the_148_pixels_in_its_middle(tmp_path):
    pixels = some_codes(0, 3, 218, 178, 3)
    codes = of_pngs(tmp_path, pixels, 148, crop="celeba")
    np.testing.assert_array_equal(codes, pixels[:, 35:183, 15:163])


@pytest.mark.parametrize(
    ("shape", "size", "options", "sentence"),
    [
        ((218, 179, 3), 8, {"crop": "celeba"}, "178×218 pixels for the crop celeba, got 179×218"),
        ((178, 218, 3), 8, {"crop": "celeba"}, "178×218 pixels for the crop celeba, got 218×178"),
        ((218, 178, 3), 149, {"crop": "celeba"}, "at least 149 pixels a side .* got 148"),
        ((4, 5), 4, {"crop": "none"}, "must be square without a crop, got 5×4"),
        ((4, 5), 5, {}, "at least 5 pixels a side after the crop, got 4"),
        ((4, 4, 4), 4, {}, "must be opaque, and some of it is transparent"),
        ((4, 4, 2), 4, {}, "must be opaque, and some of it is transparent"),
    ],
)
def test_pictures_of_the_wrong_shape_are_refused(tmp_path, shape, size, options, sentence):
    with pytest.raises(DataError, match=rf"\.png.*{sentence}"):
        of_pngs(tmp_path, some_codes(0, 3, *shape), size, **options)


def refused(tmp_path, content: bytes) -> str:
    """What is said of a picture among others."""
    folder = placed(tmp_path, {"0.png": FLAT, "1.png": content, "2.png": FLAT})
    with pytest.raises(DataError) as found:
        load_files(folder, "train", 4)
    assert str(folder / "1.png") in str(found.value)
    return str(found.value)


def test_what_is_no_picture_is_refused(tmp_path):
    gif = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    for content in (b"", b"text", gif, FLAT[:-13], FLAT[:40], by_hand.jpeg(200)[:-30]):
        assert "cannot be read as PNG, JPEG, BMP or WebP" in refused(tmp_path, content)
    deep = by_hand.png(some_codes(0, 4, 4), depth=16)
    assert "mode I;16; convert it" in refused(tmp_path, deep)


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first
def test_pictures_that_unpack_to_too_much_are_refused(tmp_path, side):
    rows = zlib.compress(bytes(1000))
    bomb = by_hand.png_header(side, side) + by_hand.png_chunk(b"IDAT", rows)
    assert "unpacks to more pixels than is safe" in refused(tmp_path, bomb)


def test_grey_beside_colour_is_refused_unless_one_is_chosen(tmp_path):
    mixed = by_hand.png(some_codes(0, 4, 4, 3))
    placed(tmp_path, {"0.png": FLAT, "1.png": FLAT, "2.png": FLAT, "3.png": mixed})
    with pytest.raises(DataError, match="choose colour, or grey, for all"):
        load_files(tmp_path, "train", 4)
    assert pictured(tmp_path, 4, colour=True)[0].shape == (4, 4, 4, 3)
    assert pictured(tmp_path, 4, colour=False)[0].shape == (4, 4, 4, 1)


def test_pictures_need_a_size(tmp_path):
    with pytest.raises(DataError, match="pictures, which need a size"):
        load_files(placed(tmp_path, {"a.png": FLAT}), "train")


def test_pictures_are_sorted_and_shuffled_in_a_fixed_order(tmp_path):
    names = [f"{folder}/{i}.png" for folder in "ba" for i in (10, 9)] + ["c.png"]
    greys = {name: by_hand.png(np.full((2, 2), 50 * i, np.uint8)) for i, name in enumerate(names)}
    folder = placed(tmp_path, greys)
    assert [p.relative_to(folder).as_posix() for p in list_pictures(folder)] == sorted(names)
    codes, _ = pictured(folder, 1)
    assert codes.ravel().tolist() == [100, 150, 0, 50, 200]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["b/1.png", "a/1.png", "a/x/2.png"], [1, 0, 0]),
        (["a/b/1.png", "a/c/1.png"], [0, 0]),
        (["a/1.png", "b/1.png", "1.png"], [0, 0, 0]),
        ([f"{i:03}/1.png" for i in range(255)], list(range(255))),
        ([f"{i:03}/1.png" for i in range(256)], [0] * 256),
    ],
)
def test_sub_folders_are_labels(tmp_path, names, labels):
    found = folder_labels(tmp_path, [tmp_path / name for name in names])
    assert found.dtype == np.uint8
    assert found.tolist() == labels


def test_labels_belong_to_their_pictures(tmp_path):
    greys = {
        f"{label}/{i}.png": by_hand.png(np.full((2, 2), label, np.uint8))
        for label in range(4)
        for i in range(5)
    }
    codes, labels = pictured(placed(tmp_path, greys), 2)
    np.testing.assert_array_equal(codes[:, 0, 0, 0], labels)
    assert np.bincount(labels).tolist() == [5, 5, 5, 5]


FACES = {f"{i}.png": by_hand.png(np.full((2, 2), i, np.uint8)) for i in range(6)}
LIST = b"6\r\nMale  Young\r\n" + b"".join(
    b"%d.png %2d %2d\r\n" % (i, 1 if i % 2 else -1, 1 if i < 3 else -1) for i in (3, 0, 1, 2, 5, 4)
)


@pytest.mark.parametrize("where", ["list", "../list"])
def test_attributes_are_found_and_belong_to_their_pictures(tmp_path, where):
    folder = placed(tmp_path / "faces", FACES)
    placed(folder, {where.replace("list", ATTRIBUTES): LIST})
    images = load_files(folder, "train", 2)
    number = images.codes[:, 0, 0, 0].astype(int)
    assert {*images.factors} == {"Male", "Young"}
    np.testing.assert_array_equal(images.factors["Male"], np.where(number % 2, 1.0, -1.0))
    np.testing.assert_array_equal(images.factors["Young"], np.where(number < 3, 1.0, -1.0))
    assert images.factors["Male"].dtype == np.float64


def test_a_list_of_other_pictures_beside_the_folder_is_passed_over(tmp_path):
    folder = placed(tmp_path / "faces", FACES)
    placed(tmp_path, {ATTRIBUTES: LIST.replace(b".png", b".jpg")})
    assert load_files(folder, "train", 2).factors is None


def without(line: int) -> bytes:
    lines = LIST.splitlines(keepends=True)
    return b"".join([b"5\r\n", *lines[1:line], *lines[line + 1 :]])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "number of pictures in it, 0"),
        (b"0\n", "number of pictures in it, 0"),
        (LIST.replace(b"6", b"7", 1), "number of pictures in it, 6"),
        (LIST[: LIST.rindex(b"4.png")], "number of pictures in it, 5"),
        (LIST.replace(b"Young", "Né".encode()), "attributes in ASCII"),
        (LIST[:-5], "-1 or 1 for each of its 2 attributes"),
        (LIST.replace(b" 1\r", b" 2\r"), "-1 or 1"),
        (LIST.replace(b" 1\r", b" 1 1\r"), "-1 or 1"),
        (LIST.replace(b"Young", b"Male"), "-1 or 1"),
        (LIST.replace(b"3.png", b"2.png"), "every picture once"),
        (without(4), "one line for each picture beside it, got 1 without"),
    ],
)
def test_lists_of_attributes_that_do_not_keep_to_their_form_are_refused(
    tmp_path, content, sentence
):
    folder = placed(tmp_path, FACES | {ATTRIBUTES: content})
    with pytest.raises(DataError, match=rf"{ATTRIBUTES} must .*{sentence}"):
        load_files(folder, "train", 2)


def test_two_pictures_of_one_name_have_no_attributes(tmp_path):
    folder = placed(tmp_path, FACES | {"more/1.png": FACES["1.png"], ATTRIBUTES: LIST})
    with pytest.raises(DataError, match="one line for each picture"):
        load_files(folder, "train", 2)


@given(st.integers(0, len(LIST) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_edited_lists_are_read_as_they_stand_or_refused(tmp_path_factory, at, put, taken):
    content = LIST[:at] + put + LIST[at + taken :]
    folder = placed(tmp_path_factory.mktemp("faces"), {ATTRIBUTES: content})
    pictures = [folder / name for name in FACES]
    try:
        found = read_attributes(folder / ATTRIBUTES, pictures)
    except DataError:
        return
    _, header, *lines = [line.split() for line in content.split(b"\n") if line.strip()]
    for name, column in (found or {}).items():
        place = 1 + header.index(name.encode())
        for picture, sign in zip(pictures, column, strict=True):
            (line,) = (line for line in lines if line[0] == picture.name.encode())
            assert int(line[place]) == sign


@pytest.mark.parametrize("name", ["1.jpg", "1.bmp", "1.webp"])
@given(data=st.data())
def test_edited_pictures_are_read_in_their_shape_or_refused(tmp_path_factory, name, data):
    colours = some_codes(0, 8, 8, 3)
    raw = {"jpg": by_hand.jpeg(200), "bmp": by_hand.bmp(colours)}.get(name[2:])
    raw = raw or by_hand.webp(8, 8, (1, 2, 3))
    at = data.draw(st.integers(0, len(raw) - 1))
    put, taken = data.draw(st.binary(max_size=4)), data.draw(st.integers(0, 4) | st.just(len(raw)))
    other = by_hand.png(colours)
    files = {name: raw[:at] + put + raw[at + taken :], "2.png": other, "3.png": other}
    folder = placed(tmp_path_factory.mktemp("pictures"), files)
    try:
        images = load_files(folder, "train", 4, colour=True)
    except DataError:
        return
    assert images.codes.shape == (2, 4, 4, 3)
    assert images.codes.dtype == np.uint8
