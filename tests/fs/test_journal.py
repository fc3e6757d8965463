"""The journal: what one process writes down the next one reads, also if the first is killed between two stores."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretfs.errors import JournalUnreadable
from secretfs.fs.inode import Directory, Version
from secretfs.fs.inodes import Tree
from secretfs.fs.journal import Flag, Journal, Record, StoreRecord, _Field, _Head
from secretfs.fs.keys import (
    Bulk,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    PinnedSecretKey,
    PinnedValueKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
    key_from_text,
    key_to_text,
)

KEYS: list[DirectoryKey | LeafKey] = [
    RootKey(),
    FolderKey("vault"),
    FolderKey("vault", ("a", "b")),
    SecretKey("vault", "a/b/c"),
    ValueKey("vault", "a/b/c", "key"),
    BulkKey("vault", Bulk.ENV),
    SecretBulkKey("vault", "a", Bulk.JSON),
    ControlsKey(),
    ControlKey(Control.REFRESH),
]


PINNED = PinnedSecretKey("vault", "db", b"a version of it.")
PINNED_VALUE = PinnedValueKey("vault", "db", PINNED.pin, "password")


def successor(journal: Journal) -> Journal:
    """Return the journal as the next process gets it."""
    return Journal(os.dup(journal.file))


class Killed(BaseException):
    """What a process does not survive."""


class Mortal:
    """The words of a journal; the process is killed instead of making one store more than it may."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self._words = words
        self.left = stores

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, place: Any) -> Any:
        return self._words[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        self._words[place] = value

    def cast(self, kind: str) -> "Mortal":
        return _Bytes(self, self._words.cast("B")) if kind == "B" else self

    def release(self) -> None:
        self._words.release()


class _Bytes(Mortal):
    """The same as bytes. A copy of many is cut short by the kill, as it might be."""

    def __init__(self, words: Mortal, content: memoryview) -> None:
        super().__init__(content, 0)
        self._counted = words

    def __setitem__(self, place: Any, value: Any) -> None:
        for start in range(place.start, place.stop, 8):
            if not self._counted.left:
                raise Killed
            self._counted.left -= 1
            end = min(start + 8, place.stop)
            self._words[start:end] = value[start - place.start : end - place.start]


class TestPlaces:
    @pytest.mark.parametrize("key", KEYS, ids=repr)
    def test_each_comes_back(self, key: DirectoryKey | LeafKey) -> None:
        assert key_from_text(key_to_text(key)) == key

    @given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
    def test_so_does_any_name(self, name: str, key: str) -> None:
        assert key_from_text(key_to_text(ValueKey("store", name, key))) == ValueKey("store", name, key)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b'["else"]',
            b'["value", "a"]',
            b'["bulk", "a", "xml"]',
            b"\xff",
            b'["value", 1, "a", "b"]',
            b'["value", "a", ["b"], "c"]',
            b'["folder", "a", "b"]',
            b'["folder", "a", [1]]',
        ],
    )
    def test_anything_else_is_refused(self, text: bytes) -> None:
        with pytest.raises((ValueError, TypeError, KeyError)):
            key_from_text(text)


class TestJournal:
    def test_what_is_written_is_read(self) -> None:
        journal = Journal()
        slot = journal.add(7, b"a place")
        journal.count(slot, 3)
        journal.note_use(slot, time.time())
        journal.bind(slot, b"d" * 16, 1 << 40, 1234.5)
        journal.flag(slot, Flag.CURRENT)
        (record,) = successor(journal).records()
        assert record == Record(
            slot, 7, 3, 1, Flag.CURRENT | Flag.BOUND, 1 << 40, 1234.5, record.used, b"d" * 16, b"a place", b""
        )
        assert record.used == pytest.approx(journal.born, abs=60)

    @pytest.mark.parametrize("text", [b"", b"seven.b", b"eight by", b"more than eight"])
    def test_a_pin_is_read(self, text: bytes) -> None:
        journal = Journal()
        for _ in range(2):  # the second time in a record that was free
            slot = journal.add(7, text, pin=PINNED.pin)
            journal.flag(slot, Flag.REVOKED)
            (record,) = successor(journal).records()
            assert (record.text, record.pin, record.flags) == (text, PINNED.pin, Flag.PINNED | Flag.REVOKED)
            journal.drop(slot)
            slot = journal.add(8, text)
            (record,) = successor(journal).records()
            assert (record.text, record.pin, record.flags) == (text, b"", Flag(0))
            journal.drop(slot)

    def test_the_head_is_kept(self) -> None:
        journal = Journal()
        assert journal.init == b""
        journal.store_init(b"hello, kernel")
        assert [journal.take_number() for _ in range(3)] == [1, 2, 3]
        journal.begin_generation()
        later = successor(journal)
        assert later.init == b"hello, kernel"
        assert later.take_number() == 4
        assert (later.generation, later.born, later.digest_key) == (1, journal.born, journal.digest_key)
        assert len(set(later.digest_key)) > 8
        assert Journal().digest_key != later.digest_key

    def test_it_grows_and_what_is_dropped_makes_room(self) -> None:
        journal = Journal()
        slots = [journal.add(number, b"x" * (number % 300)) for number in range(1, 5001)]
        size = os.fstat(journal.file).st_size
        later = successor(journal)
        assert [record.number for record in later.records()] == list(range(1, 5001))
        for slot in slots:
            later.drop(slot)
        for number in range(1, 5001):
            later.add(number, b"y" * (number % 300))
        assert os.fstat(journal.file).st_size == size
        assert sorted(record.number for record in successor(journal).records()) == list(range(1, 5001))

    def test_what_is_free_is_given_away_once(self) -> None:
        """The waiters are taken before the inodes are read."""
        journal = Journal()
        journal.add_waiter(b"one")
        later = successor(journal)
        assert later.take_waiters() == [b"one"]
        assert list(later.records()) == []
        later.add(5, b"one")
        later.add(6, b"two")
        assert [record.number for record in successor(later).records()] == [5, 6]

    def test_stores_as_version_0_1_0_wrote_them_down(self) -> None:
        journal = Journal()
        journal._store_note(b'{"vault": true, "env": false}')
        assert journal.stores == {"vault": StoreRecord(multi_valued=True), "env": StoreRecord(multi_valued=False)}

    def test_stores_as_version_0_1_0_reads_them(self) -> None:
        journal = Journal()
        journal.stores = {"vault": StoreRecord(multi_valued=True, type="secretstores.hashicorp.vault")}
        assert json.loads(journal._note())["vault"] is True

    def test_stores_and_waiters_are_no_inodes(self) -> None:
        journal = Journal()
        assert journal.stores == {}
        journal.stores = {"vault": StoreRecord(multi_valued=True)}
        stores = {
            "vault": StoreRecord(multi_valued=True, type="secretstores.hashicorp.vault", declaration="0123abcd"),
            "env": StoreRecord(multi_valued=False, type="secretstores.local.env"),
        }
        journal.stores = stores
        slot = journal.add_waiter(b"one")
        journal.add_waiter(b"two")
        journal.drop(slot)
        later = successor(journal)
        assert later.stores == stores
        assert list(later.records()) == []
        assert later.take_waiters() == [b"two"]
        assert successor(journal).take_waiters() == []

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda file: os.ftruncate(file, 100),
            lambda file: os.pwrite(file, b"x", 0),
            lambda file: os.pwrite(file, b"\xff", 8),
            lambda file: os.pwrite(file, b"\xff" * 8, 16),
        ],
        ids=["cut", "another file", "another format", "damaged"],
    )
    def test_another_file_is_refused(self, spoil: Callable[[int], object]) -> None:
        journal = Journal()
        spoil(os.dup(journal.file))
        with pytest.raises(JournalUnreadable):
            successor(journal)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (_Field.WORDS, 1),
            (_Field.WORDS, 1 << 20),
            (_Field.WORDS, (1 << 64) - 1),
            (_Field.LENGTH, 1 << 20),
            (_Field.LENGTH, (1 << 64) - 1),
            (_Field.MODIFIED, 0x7FF8 << 48),  # not a number
            (_Field.USED, 0x7FF0 << 48),  # infinity
            (_Field.TEXT, int.from_bytes(b"[1, [2]]", "little")),
        ],
    )
    def test_a_record_that_cannot_be_is_refused(self, field: int, value: int) -> None:
        journal = Journal()
        Tree(journal)
        slot = journal.add(300, b"a place.", lookups=1)
        journal._words[slot + field] = value
        with pytest.raises(JournalUnreadable):
            Tree(successor(journal))

    @pytest.mark.parametrize("note", [b"[]", b"{", b'{"vault": true, "": {"vault": 7}}', b"[" * 100_000])
    def test_stores_that_cannot_be_are_refused(self, note: bytes) -> None:
        journal = Journal()
        journal._store_note(note)
        with pytest.raises(JournalUnreadable):
            assert successor(journal).stores == {}

    def test_a_record_that_is_damaged_is_refused(self) -> None:
        journal = Journal()
        slot = journal.add(1, b"x")
        os.pwrite(journal.file, bytes(8), slot * 8)
        with pytest.raises(JournalUnreadable):
            list(successor(journal).records())


def scenario(tree: Tree, told: dict[int, int]) -> None:
    """Do all that a tree does. ``told`` is what the kernel has been told of and holds: number to references."""

    def tell(inode: Directory | Version) -> None:
        tree.add_ref(inode)
        told[inode.number] = told.get(inode.number, 0) + 1

    def give_up(inode: Directory | Version) -> None:
        references = told.pop(inode.number)
        tree.drop_refs(inode.number, references)

    key = ValueKey("vault", "db", "password")
    tell(tree.directory(FolderKey("vault")))
    tell(tree.directory(SecretKey("vault", "db")))
    first = tree.current(key)
    tell(first)
    tell(first)
    tree.bind(key, 1, b"one", 1.0)
    tree.open(first)
    second = tree.bind(key, 2, b"two", 2.0)
    tell(second)
    give_up(first)
    third = tree.successor(key)
    assert isinstance(third, Version)
    tell(third)
    tree.promote(third)
    tree.has_content(third, b"three", 3.0)
    give_up(second)
    tell(tree.directory(PINNED))
    tell(tree.bind(PINNED_VALUE, 3, b"one", 1.0))
    tree._journal.stores = {"vault": StoreRecord(multi_valued=True)}
    tree.unlink(third)
    tree.detach_store("vault")


def test_a_kill_at_any_moment_loses_nothing_that_the_kernel_was_told() -> None:
    stores = 0
    while True:
        journal, told = Journal(), dict[int, int]()
        tree = Tree(journal)
        mortal = Mortal(journal._words, stores)
        journal._words = mortal  # type: ignore[assignment]
        try:
            scenario(tree, told)
        except Killed:
            stores += 1
        else:
            break
        later = Tree(successor(journal))
        for number, references in told.items():
            inode = later.inode(number)
            assert inode.key == tree.inode(number).key
            assert inode.lookups >= references
        for version in later._current.values():
            assert version.digest == b"" or version.size == {1.0: 3, 2.0: 3, 3.0: 5}[version.modified]
        assert later._numbers.take(FolderKey("new")) not in {1, *told}
    assert stores > 100


def test_a_tree_goes_on_where_it_was() -> None:
    journal = Journal()
    tree = Tree(journal)
    scenario_keys = [key for key in KEYS if isinstance(key, ValueKey | BulkKey)]
    directory = tree.directory(FolderKey("vault"))
    tree.add_ref(directory)
    for place, key in enumerate(scenario_keys, 1):
        version = tree.bind(key, place, b"content", 5.0)
        tree.add_ref(version)
        tree.open(version)
    old = tree.current(scenario_keys[0])
    new = tree.bind(scenario_keys[0], 9, b"other", 6.0)
    tree.add_ref(new)
    later = Tree(successor(journal))
    assert later.directory(FolderKey("vault")).number == directory.number
    assert later.current(scenario_keys[0]).number == new.number
    assert not later.is_current(later.inode(old.number))  # type: ignore[arg-type]
    restored = later.inode(old.number)
    assert isinstance(restored, Version)
    assert (restored.size, restored.modified, restored.opened, restored.in_doubt, restored.content) == (
        7,
        5.0,
        True,
        True,
        None,
    )
    assert later.has_content(restored, b"content", 0.0)
    assert not later.has_content(restored, b"another", 0.0)
    assert later.bind(scenario_keys[0], 1, b"other", 0.0) is later.inode(new.number)
    assert set(later.inherited["vault"]) == set(scenario_keys)
    assert restored.content == b"content"
    later.drop_refs(old.number, 1)
    with pytest.raises(KeyError):
        later.inode(old.number)


def test_what_is_pinned_is_found_again() -> None:
    """So that the same version has the same directory, and poll is answered (pinned files are current)."""
    journal = Journal()
    tree = Tree(journal)
    directory, value = tree.directory(PINNED), tree.bind(PINNED_VALUE, 1, b"one", 1.0)
    for inode in (directory, value):
        tree.add_ref(inode)
    later = Tree(successor(journal))
    assert later.directory(PINNED).number == directory.number
    assert later.current(PINNED_VALUE).number == value.number
    assert later.inodes.pinned.versions(PINNED.secret) == [PINNED]
    assert [version.number for _, version in later.inodes.pinned.files(PINNED.secret)] == [value.number]
    for inode in (later.directory(PINNED), later.current(PINNED_VALUE)):
        later.drop_refs(inode.number, 1)
    assert later.inodes.pinned.versions(PINNED.secret) == []
    assert len(later) == 1


def test_to_a_version_that_knows_no_pins_it_is_in_the_secret() -> None:
    """It can take the mount over: what is pinned is to it a directory and a file that no path leads to."""
    journal = Journal()
    tree = Tree(journal)
    for inode in (
        tree.directory(SecretKey("vault", "db")),
        tree.directory(PINNED),
        tree.bind(PINNED_VALUE, 1, b"x", 1.0),
    ):
        tree.add_ref(inode)
    _, secret, *pinned = journal.records()
    assert secret.flags & Flag.CURRENT
    assert [key_from_text(record.text) for record in pinned] == [
        SecretKey("vault", "db"),
        ValueKey("vault", "db", "password"),
    ]
    assert not any(record.flags & (Flag.CURRENT | Flag.LINKED) for record in pinned)


def test_an_app_that_was_removed_stays_removed() -> None:
    """A worker that takes over refuses its files too, and knows which bytes the kernel may still have."""
    journal = Journal()
    tree = Tree(journal)
    files = [tree.bind(ValueKey(f"{app}/vault", "db", "password"), 1, b"one", 1.0) for app in ("orders", "billing")]
    held = tree.directory(PinnedSecretKey("orders/vault", "db", PINNED.pin))
    inodes: list[Directory | Version] = [*files, held]
    for inode in inodes:
        tree.add_ref(inode)
    tree.open(files[0])
    tree.detach_store("orders/vault")
    assert tree.revoke(["orders"]) == 1
    later = Tree(successor(journal))
    assert [later.inode(inode.number).revoked for inode in inodes] == [True, False, True]
    assert [(app, version.number) for app, version in later.revoked()] == [("orders", files[0].number)]
    assert later.current(files[0].key).number != files[0].number
    assert later.directory(PinnedSecretKey("orders/vault", "db", PINNED.pin)).number != held.number


def test_notes_of_growing_length_leave_no_gaps() -> None:
    """A host with a thousand apps adds one after the other."""
    journal, names = Journal(), [f"app-{number}/vault" for number in range(300)]
    for count in range(1, len(names) + 1):
        journal.stores = dict.fromkeys(names[:count], StoreRecord(multi_valued=True))
    assert successor(journal).stores == journal.stores == dict.fromkeys(names, StoreRecord(multi_valued=True))
    used = journal._words[_Head.USED] * 8
    assert used < 6 * len(journal._note())
