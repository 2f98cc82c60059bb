"""Images: read by their headers alone, kept once, refused when they are broken, and taken into the run's folder."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import run
from engine.data.image_header import Header, read_header
from engine.data.media import MAX_FILE_BYTES, MediaStore, collect_media, hygiene_problem, read_image
from engine.live.progress import Progress
from protocols.errors import ConfigError, TaskError
from protocols.message import ImagePart
from protocols.task import Task


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width_px: int = 300, height_px: int = 240, shade: int = 0) -> bytes:
    """A whole grey image, as the standard has it."""
    lines = (b"\0" + bytes([shade]) * width_px) * height_px
    head = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def by_pillow(kind: str, width_px: int, height_px: int, **options: bool) -> bytes:
    import io

    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.new("RGB", (width_px, height_px), (200, 30, 30)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize(("width_px", "height_px"), [(1, 1), (300, 17), (17, 300), (640, 480)])
def test_a_header_says_what_the_image_measures(
    kind: str, options: dict[str, bool], width_px: int, height_px: int
) -> None:
    data = by_pillow(kind, width_px, height_px, **options)
    assert read_header(data) == Header(f"image/{kind.lower()}", width_px, height_px)
    for end in range(len(data) - 2):  # a GIF's and a JPEG's last bytes are their end marks, and zeros may follow
        with pytest.raises(ValueError, match=r"breaks off|is not a|is damaged|damaged|measures|missing|without"):
            read_header(data[:end])


def test_an_extended_webp_says_the_size_of_its_canvas() -> None:
    body = (
        b"WEBPVP8X"
        + struct.pack("<IB3s", 10, 0, b"\0\0\0")
        + (299).to_bytes(3, "little")
        + (70_000).to_bytes(3, "little")
    )
    assert read_header(b"RIFF" + struct.pack("<I", len(body)) + body) == Header("image/webp", 300, 70_001)


@given(st.binary(max_size=400), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"RIFF", b""]))
def test_any_bytes_are_an_image_or_a_sentence(data: bytes, magic: bytes) -> None:
    try:
        header = read_header(magic + data)
    except ValueError:
        return  # every other error fails the test
    assert header.width_px > 0 and header.height_px > 0


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_damaged_png_is_refused(at: int, value: int) -> None:
    data = bytearray(png(40, 30))
    at %= len(data)
    if data[at] == value:
        return
    data[at] = value
    with pytest.raises(ValueError, match=r"."):
        read_header(bytes(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a PNG, JPEG, GIF or WebP image"),
        (b"<svg onload='x'/>", "is not a PNG"),
        (b"\xff\xd8" + b"\xff" * 100_000, "breaks off"),
        (b"\xff\xd8\xff\xe0\0\0" + b"\0" * 50, "a segment has no length"),
        (png(0, 5), "0 x 5 pixels"),
        (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, 0, 0, 0, 0))
            + chunk(b"IEND", b""),
            "more than",
        ),
    ],
)
def test_a_hostile_image_is_one_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(TaskError, match=f"a.jsonl, line 3: .*{said}.*; put a whole image there") as error:
        MediaStore(tmp_path).put(data, where="a.jsonl, line 3")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    store, data = MediaStore(tmp_path / "media"), png(300, 240)
    first = store.put(data, where="?")
    assert (
        first
        == store.put(data, where="?")
        == ImagePart(sha256=hashlib.sha256(data).hexdigest(), media_type="image/png", width_px=300, height_px=240)
    )
    assert [path.name for path in store.folder.iterdir()] == [first.sha256]
    assert store.path(first.sha256).read_bytes() == data
    store.put(png(300, 240, shade=9), where="?")
    assert len(list(store.folder.iterdir())) == 2


def _put_many(folder: Path, count: int) -> None:
    for number in range(count):
        MediaStore(folder).put(png(230, 230, shade=number), where="?")


def test_two_processes_may_put_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_put_many, args=(tmp_path, 40)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        hashlib.sha256(png(230, 230, shade=number)).hexdigest() for number in range(40)
    }
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in tmp_path.iterdir())


def test_the_store_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))
    assert MediaStore().folder == tmp_path / "cache" / "media"
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"images cannot be kept there: .*; set MOOT_CACHE"):
        MediaStore().put(png(), where="?")


@pytest.mark.parametrize(
    ("width_px", "height_px", "problem"),
    [
        (224, 1568, ""),
        (4096, 4096, ""),
        (223, 300, "a side below 224"),
        (4097, 1000, "a side above 4096"),
        (224, 1569, "more than 7 to 1"),
    ],
)
def test_sizes_that_models_see_badly(width_px: int, height_px: int, problem: str) -> None:
    part = ImagePart(sha256="", width_px=width_px, height_px=height_px)
    assert hygiene_problem(part).endswith(problem) and bool(hygiene_problem(part)) == bool(problem)


def test_an_odd_size_is_kept_refused_or_mended(tmp_path: Path) -> None:
    store, small = MediaStore(tmp_path), png(100, 200)
    assert store.put(small, where="?").width_px == 100
    with pytest.raises(TaskError, match=r"line 1: measures 100 x 200 pixels, a side below 224; .*image_hygiene: keep"):
        store.put(small, where="line 1", hygiene="refuse")
    assert store.put(png(300, 300), where="?", hygiene="refuse").width_px == 300


@pytest.mark.parametrize(
    ("before", "after"), [((100, 200), (224, 448)), ((8192, 2048), (4096, 1024)), ((30, 210), (224, 1568))]
)
def test_resizing_finds_the_nearest_size_in_range(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    pytest.importorskip("PIL")
    store = MediaStore(tmp_path)
    part = store.put(png(*before), where="?", hygiene="resize")
    assert (part.width_px, part.height_px, part.media_type) == (*after, "image/png")
    assert read_header(store.path(part.sha256).read_bytes())[1:] == after
    assert store.put(png(*before), where="?", hygiene="resize") == part  # and nothing but the result is kept
    assert len(list(tmp_path.iterdir())) == 1


def test_no_size_mends_a_strip_nor_a_picture_that_does_not_decode(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="more than 7 to 1"):
        MediaStore(tmp_path).put(png(300, 2200), where="?", hygiene="resize")
    pytest.importorskip("PIL")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 0, 0, 0, 0))
    hollow = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b"")
    with pytest.raises(TaskError, match="line 9: cannot be decoded"):
        MediaStore(tmp_path).put(hollow, where="line 9", hygiene="resize")


def test_an_image_of_a_row_is_a_path_bytes_or_inline(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(png())
    inline = "data:image/png;base64," + base64.b64encode(png()).decode()
    for value in (
        "deep/a.png",
        str(tmp_path / "deep" / "a.png"),
        {"path": "deep/a.png"},
        {"bytes": png(), "path": "x"},
        png(),
        inline,
    ):
        assert read_image(value, folder=tmp_path, where="?")[0] == png()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("none.png", r"image 'none.png' cannot be read from .*: No such file or directory; set tasks.image_folder"),
        ("../secret.png", "is not inside .*; set tasks.image_folder"),
        ("link.png", "is not inside"),
        ("/etc/hostname", "is not inside"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        (".", "cannot be read"),
        ("https://a.example/b.png", "is an address; fetch the image and give its path"),
        ("data:image/png;base64,@@", "is not valid base64"),
        ("data:image/png,abc", "must be an image in base64"),
        (7, "must be a path or bytes, not int"),
        ("", "must be a path or bytes"),
        ({}, "must be a path or bytes, not NoneType"),
        (b"0" * (MAX_FILE_BYTES + 1), "more than the 67108864 allowed"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_sentence(tmp_path: Path, value: object, said: str) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(TaskError, match=f"(?s)a.jsonl, line 2: .*{said}"):
        read_image(value, folder=folder, where="a.jsonl, line 2")


def task(*images: ImagePart) -> Task:
    return Task(id="t", question="?", images=images)


def test_a_run_takes_the_images_it_uses(tmp_path: Path) -> None:
    store, run = MediaStore(tmp_path / "store"), tmp_path / "run"
    run.mkdir()
    used, small, unused = (store.put(png(*size), where="?") for size in ((300, 240), (20, 20), (500, 500)))
    notes = collect_media([task(used), task(used, small)], run, store)
    assert {path.name for path in (run / "media").iterdir()} == {used.sha256, small.sha256}
    assert (run / "media" / used.sha256).read_bytes() == png(300, 240)
    assert notes == ["1 of 2 images may be seen badly, for instance one that measures 20 x 20 pixels, a side below 224"]
    assert unused.sha256 not in os.listdir(run / "media")
    assert collect_media([task(used)], run, store) == []  # taken already: a resume finds them there


def test_a_started_run_has_its_images_and_says_which_are_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))

    async def no_work(*_: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(run, "_with_cluster", no_work)
    (tmp_path / "a.png").write_bytes(png(100, 100))
    (tmp_path / "t.json").write_text(json.dumps([{"question": f"{n}?", "picture": "a.png"} for n in range(4)]))
    recipe = {
        "name": "t",
        "tasks": {"source": "file", "path": "t.json", "images": "picture"},
        "models": {"m": {"backend": "scripted"}},
        "agents": {"a": {"model": "m"}, "b": {"model": "m"}},
        "protocol": {"name": "society"},
        "cast": {"generator": ["a", "b"]},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    outcome = run.start(
        "run", tmp_path / "r.yaml", (), run_dir=tmp_path / "run", limit=None, progress=Progress(live=False)
    )
    (image,) = (Path(outcome["run"]) / "media").iterdir()
    assert image.name == hashlib.sha256(png(100, 100)).hexdigest()
    assert "1 of 1 images may be seen badly" in capsys.readouterr().err
    image.unlink()  # as if the run was killed before it had its images
    manifest = tmp_path / "run" / "run.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"finished_at": None}))
    run.resume(tmp_path / "run", progress=Progress(live=False))
    assert image.exists()


def test_a_run_without_images_has_no_media_folder(tmp_path: Path) -> None:
    assert collect_media([task()], tmp_path, MediaStore(tmp_path / "store")) == []
    assert list(tmp_path.iterdir()) == []


def test_images_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    store = MediaStore(tmp_path / "store")
    part = store.put(png(), where="?")
    monkeypatch.setattr(os, "link", refuse)
    collect_media([task(part)], tmp_path, store)
    assert (tmp_path / "media" / part.sha256).read_bytes() == png()
    assert [path.name for path in (tmp_path / "media").iterdir()] == [part.sha256]


def test_an_image_that_is_gone_from_the_store_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the run's images cannot be taken from there: No such file"):
        collect_media([task(ImagePart(sha256="0" * 64))], tmp_path, MediaStore(tmp_path / "store"))
