"""What counts as a change of files, without a mount: those are in tests/behaviour/test_watch.py."""

import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.daemon.path_watch import LOOK_EVERY, RETRY_AFTER, PathWatch
from tests.conftest import ExpectLog
from tests.support.waiting import PATIENCE


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "pki/www").mkdir(parents=True)
    (tmp_path / "pki/www/key").write_text("one")
    (tmp_path / "pki/token").write_text("one")
    return tmp_path / "pki"


def looked(*paths: Path) -> PathWatch:
    watch = PathWatch(paths)
    assert watch.look() or not any(path.exists() for path in paths)
    assert not watch.look()
    return watch


def wakes(watch: PathWatch, milliseconds: float = PATIENCE * 1000) -> bool:
    poll = select.poll()
    watch.register(poll)
    return bool(poll.poll(milliseconds))


def test_other_content_is_a_change(directory: Path) -> None:
    watch = looked(directory)
    for name in ("www/key", "token"):
        (directory / name).write_text("two")
        assert wakes(watch)
        assert watch.look()
        assert not watch.look()


def test_the_same_content_is_none(directory: Path) -> None:
    watch = looked(directory)
    (directory / "new").write_text("one")
    (directory / "new").replace(directory / "token")
    assert wakes(watch)
    assert not watch.look()


def test_a_file_that_goes_and_comes_again(directory: Path) -> None:
    watch = looked(directory)
    for content, is_change in (("one", False), ("two", True)):
        (directory / "token").unlink()
        assert not watch.look()
        (directory / "token").write_text(content)
        assert wakes(watch)
        assert watch.look() == is_change


def test_a_path_that_is_not_there_yet(directory: Path) -> None:
    watch = looked(directory / "later/file")
    (directory / "later").mkdir()
    assert wakes(watch)
    assert not watch.look()
    (directory / "later/file").write_text("one")
    assert wakes(watch)
    assert watch.look()


def test_a_single_file_beside_others(directory: Path) -> None:
    watch = looked(directory / "token")
    (directory / "other").write_text("two")
    assert wakes(watch)
    assert not watch.look()


def test_a_new_file_in_a_directory_that_was_made_meanwhile(directory: Path) -> None:
    watch = looked(directory)
    (directory / "more/below").mkdir(parents=True)
    (directory / "more/below/file").write_text("one")
    assert watch.look()
    (directory / "more/below/file").write_text("two")
    assert wakes(watch)
    assert watch.look()


def test_nothing_wakes_it_while_nothing_happens(directory: Path) -> None:
    """Nor does its own reading."""
    watch = looked(directory)
    assert not wakes(watch, 0)


@pytest.fixture
def unreadable(directory: Path) -> Iterator[Path]:
    """Give a file that cannot be read, by root neither: a loop of links."""
    loop = directory / "loop"
    loop.symlink_to(loop)
    yield loop
    loop.unlink(missing_ok=True)


def test_a_file_that_cannot_be_read_is_tried_again(directory: Path, unreadable: Path, expect_log: ExpectLog) -> None:
    expect_log(r"loop: Too many levels of symbolic links; it is tried again")
    watch = PathWatch([directory])
    assert watch.look()
    assert watch.next_look == RETRY_AFTER
    assert not watch.look()
    unreadable.unlink()
    unreadable.write_text("one")
    assert watch.look()
    assert watch.next_look == LOOK_EVERY
