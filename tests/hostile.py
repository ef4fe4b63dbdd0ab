"""A folder of photographs with everything wrong that people's folders have."""

import os
import shutil

import numpy as np
from photos import encoded, exif, photo
from PIL import Image

GOOD_FORMS = {  # what has to be read, and how it is named
    "cmyk.jpg": lambda p: encoded(p.convert("CMYK"), "JPEG"),
    "deep.png": lambda p: encoded(Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257)),
    "moving.gif": lambda p: encoded(p.quantize(16), "GIF", save_all=True, append_images=[p.rotate(90).quantize(16)]),
    "new.webp": lambda p: encoded(p, "WEBP"),
    "turned.jpg": lambda p: encoded(p, "JPEG", exif=exif(6)),
    "dot.png": lambda p: encoded(p.resize((1, 1))),
    "palette.png": lambda p: encoded(p.quantize(16)),
    "glass.png": lambda p: encoded(Image.merge("RGBA", (*p.split(), p.convert("L")))),
    "progressive.jpg": lambda p: encoded(p, "JPEG", progressive=True),
    "Schönheit 写真 🌻.jpg": lambda p: encoded(p, "JPEG"),
    "l" * 240 + "g.jpg": lambda p: encoded(p, "JPEG"),
    "two\nlines.png": lambda p: encoded(p),
    os.fsdecode(b"caf\xe9.png"): lambda p: encoded(p),  # no UTF-8
}

BAD = {  # path -> what the scan has to say
    "train/cat/empty.jpg": "empty file",
    "train/cat/note.png": "is not an image",
    "train/dog/cut progressive.jpg": "truncated",
    "train/dog/cut.jpg": "truncated",
    "train/dog/cut.png": "truncated",
    "train/dog/phone.heic": "heic",
    "train/cat/bomb.png": "pixels",
    "train/cat/nowhere.jpg": "no such file",
    "train/dog/round.jpg": "cannot be read",
    "train/dog/pipe.jpg": "is not a file",
    "train/cat/loop": "link to a folder that contains it",
    "test/cat/empty.png": "empty file",
}


def hostile_folder(root, good):
    """Make it, with `good` ordinary photographs in train and a tenth of that in test; returns the number that is good.

    Classes: cat and dog, wolf with one image, "no images" with none. test/cat/leaked.png is train/cat/0.png.
    """
    count = 0
    for split, number in (("train", good), ("test", good // 10)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
        for n in range(number):
            data = encoded(photo(12, 16, seed=count))
            (root / split / ("cat", "dog")[n % 2] / f"{n}.png").write_bytes(data)
            count += 1
    train = root / "train"
    for n, (name, form) in enumerate(GOOD_FORMS.items()):
        (train / "dog" / name).write_bytes(form(Image.fromarray(photo(12, 16, seed=10**6 + n))))
    (train / "cat" / "really a.jpg").write_bytes(encoded(photo(12, 16, seed=10**6 + 50)))  # PNG
    (train / "wolf").mkdir()
    (train / "wolf" / "only.png").write_bytes(encoded(photo(12, 16, seed=10**6 + 51)))
    shutil.copy(train / "cat" / "0.png", root / "test" / "cat" / "leaked.png")
    (train / "no images").mkdir()
    (train / "cat" / "Thumbs.db").write_bytes(b"junk")
    (train / "cat" / "readme.txt").write_text("not an image, and not called one")

    large = Image.fromarray(photo(90, 120))
    (train / "cat" / "empty.jpg").touch()
    (root / "test" / "cat" / "empty.png").touch()
    (train / "cat" / "note.png").write_text("this is text")
    for name, data in (
        ("cut progressive.jpg", encoded(large, "JPEG", progressive=True)),
        ("cut.jpg", encoded(large, "JPEG")),
        ("cut.png", encoded(large)),
    ):
        (train / "dog" / name).write_bytes(data[: len(data) * 2 // 3])
    (train / "dog" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.new("1", (20_000, 20_000)).save(train / "cat" / "bomb.png", compress_level=1)
    (train / "cat" / "nowhere.jpg").symlink_to("gone.jpg")
    (train / "dog" / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(train / "dog" / "pipe.jpg")
    (train / "cat" / "loop").symlink_to("..")
    return count + len(GOOD_FORMS) + 3
