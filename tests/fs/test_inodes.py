"""Inodes: what the kernel knows stays, what nobody knows goes, a version never changes."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from secretfs.fs.inode import Directory, Version
from secretfs.fs.inodes import ROOT_INODE, Tree
from secretfs.fs.keys import Bulk, BulkKey, FolderKey, RootKey, SecretKey, ValueKey
from tests.support.canary import leaked, secret

KEY = ValueKey("vault", "db", "password")


def test_the_root_is_inode_1_for_ever() -> None:
    tree = Tree()
    assert tree.root.number == ROOT_INODE == 1
    assert tree.directory(RootKey()) is tree.root


def test_a_place_has_one_inode() -> None:
    tree = Tree()
    assert tree.directory(FolderKey("vault")) is tree.directory(FolderKey("vault"))
    assert tree.current(KEY) is tree.current(KEY)
    numbers = [
        tree.directory(FolderKey("vault")).number,
        tree.directory(FolderKey("vault", ("db",))).number,
        tree.directory(SecretKey("vault", "db")).number,
        tree.current(KEY).number,
        tree.current(BulkKey("vault", Bulk.JSON)).number,
    ]
    assert len(set(numbers)) == 5


def test_first_content_binds_the_inode_that_a_lookup_already_returned() -> None:
    tree = Tree()
    version = tree.current(KEY)
    assert tree.bind(KEY, 1, b"one", 10.0) is version
    assert (version.size, version.modified) == (3, 10.0)


def test_the_same_content_again_is_the_same_version_and_keeps_its_time() -> None:
    tree = Tree()
    version = tree.bind(KEY, 1, b"one", 10.0)
    assert tree.bind(KEY, 2, b"one", 20.0) is version
    assert version.modified == 10.0


def test_other_content_of_the_same_size_is_another_inode() -> None:
    tree = Tree()
    old = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(old)
    new = tree.bind(KEY, 2, b"two", 20.0)
    assert new.number != old.number
    assert tree.is_current(new)
    assert not tree.is_current(old)
    assert tree.inode(old.number) is old


def test_a_superseded_version_keeps_its_content_until_the_kernel_forgets_it() -> None:
    tree = Tree()
    old = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(old)
    tree.add_ref(old)
    tree.bind(KEY, 2, b"two", 20.0)
    tree.drop_refs(old.number, 1)
    assert held(old) == b"one"
    tree.drop_refs(old.number, 1)
    with pytest.raises(KeyError):
        tree.inode(old.number)


def held(version: Version) -> bytes | None:
    return version.content


def test_a_successor_nobody_looked_at_goes_with_its_predecessor() -> None:
    tree = Tree()
    old = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(old)
    tree.bind(KEY, 2, b"two", 20.0)
    tree.drop_refs(old.number, 1)
    assert len(tree) == 1


def test_a_successor_is_another_inode_and_takes_its_place_when_told() -> None:
    tree = Tree()
    old = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(old)
    new = tree.successor(KEY)
    assert new.number != old.number
    assert tree.is_current(old)
    tree.add_ref(new)
    assert tree.promote(new) is old
    assert tree.current(KEY) is tree.known(KEY) is new
    assert tree.bind(KEY, 2, b"one", 20.0) is new  # bound by whoever asks next, even to the same content
    tree.drop_refs(old.number, 1)
    tree.drop_refs(new.number, 1)
    assert len(tree) == 1


def test_a_successor_of_nothing() -> None:
    tree = Tree()
    assert tree.promote(version := tree.successor(KEY)) is None
    assert tree.known(KEY) is version


def test_a_version_that_nobody_knows_goes_when_it_is_succeeded() -> None:
    tree = Tree()
    old, new = tree.current(KEY), tree.successor(KEY)
    tree.add_ref(new)
    tree.promote(new)
    with pytest.raises(KeyError):
        tree.inode(old.number)
    assert len(tree) == 2


@pytest.mark.parametrize("known", [False, True])
def test_a_successor_that_the_kernel_did_not_take_is_dropped(*, known: bool) -> None:
    tree = Tree()
    old = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(old)
    new = tree.successor(KEY)
    if known:  # it was looked up, and then the rename failed
        tree.add_ref(new)
    tree.discard(new)
    assert tree.current(KEY) is old
    assert len(tree) == (3 if known else 2)
    if known:
        tree.drop_refs(new.number, 1)
    assert len(tree) == 2


@pytest.mark.parametrize("key", [SecretKey("vault", "db"), FolderKey("vault", ("db",)), KEY], ids=repr)
def test_what_was_deleted_stays_an_inode_until_it_is_forgotten_and_its_place_is_free(
    key: SecretKey | FolderKey | ValueKey,
) -> None:
    def at_place() -> Directory | Version:
        return tree.current(key) if isinstance(key, ValueKey) else tree.directory(key)

    tree = Tree()
    dead = at_place()
    tree.add_ref(dead)
    tree.unlink(dead)
    tree.unlink(dead)
    assert tree.known(key) is None
    assert tree.inode(dead.number) is dead
    heir = at_place()
    tree.add_ref(heir)
    assert heir.number != dead.number
    tree.drop_refs(dead.number, 1)
    assert tree.known(key) is heir
    tree.drop_refs(heir.number, 1)
    assert len(tree) == 1


def test_an_open_file_that_was_deleted_keeps_its_content() -> None:
    tree = Tree()
    version = tree.bind(KEY, 1, b"one", 10.0)
    tree.add_ref(version)
    tree.open(version)
    tree.unlink(version)
    assert not tree.is_current(version)
    assert held(version) == b"one"
    tree.drop_refs(version.number, 1)
    assert len(tree) == 1


def test_a_version_does_not_show_its_content_or_a_plain_digest_of_it() -> None:
    content = secret().encode()
    one, other = Tree().bind(KEY, 1, content, 0.0), Tree().bind(KEY, 1, content, 0.0)
    one.content = content
    assert not leaked(repr(one))
    assert one.digest != other.digest


class TreeAgainstModel(RuleBasedStateMachine):
    """Random lookups, rotations, opens, closes and forgets against plain dicts."""

    versions: Bundle[Version] = Bundle("versions")
    keys = st.sampled_from([ValueKey("s", name, key) for name in "ab" for key in "xy"])
    contents = st.sampled_from([b"", b"1", b"2", b"22", b"333"])

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.serial = 0
        self.lookups: dict[int, int] = {}
        self.opens: dict[int, int] = {}
        self.bound: dict[int, bytes] = {}
        self.current: dict[ValueKey, int] = {}

    @rule(target=versions, key=keys)
    def look_up(self, key: ValueKey) -> Version:
        version = self.tree.current(key)
        self.tree.add_ref(version)
        self.lookups[version.number] = self.lookups.get(version.number, 0) + 1
        if key in self.current:
            assert version.number == self.current[key]
        self.current[key] = version.number
        return version

    @rule(target=versions, key=keys, content=contents)
    def look_up_content(self, key: ValueKey, content: bytes) -> Version:
        self.serial += 1
        version = self.tree.bind(key, self.serial, content, float(self.serial))
        self.tree.add_ref(version)
        self.lookups[version.number] = self.lookups.get(version.number, 0) + 1
        assert self.bound.setdefault(version.number, content) == content
        assert version.size == len(content)
        assert self.tree.is_current(version)
        self.current[key] = version.number
        return version

    @rule(target=versions, key=keys)
    def publish(self, key: ValueKey) -> Version:
        version = self.tree.successor(key)
        self.tree.add_ref(version)
        self.lookups[version.number] = 1
        before = self.tree.promote(version)
        assert (before.number if before else None) == self.current.get(key)
        self.current[key] = version.number
        return version

    @rule(key=keys)
    def publish_what_is_not_taken(self, key: ValueKey) -> None:
        self.tree.discard(self.tree.successor(key))

    @rule(version=versions)
    def delete(self, version: Version) -> None:
        if self._known(version):
            self.tree.unlink(version)
            assert not self.tree.is_current(version)
            self.current = {key: number for key, number in self.current.items() if number != version.number}

    @rule(version=versions)
    def open(self, version: Version) -> None:
        if version.number not in self.bound or not self._known(version):
            return
        self.tree.open(version)
        assert version.content == self.bound[version.number]
        self.opens[version.number] = self.opens.get(version.number, 0) + 1

    @rule(version=versions)
    def close(self, version: Version) -> None:
        if self.opens.get(version.number, 0):
            self.opens[version.number] -= 1

    @rule(target=versions, version=consumes(versions))
    def forget(self, version: Version) -> MultipleResults[Version]:
        if self.opens.get(version.number):
            return multiple(version)  # the kernel holds an inode until its release is answered (fuse_prepare_release)
        count = self.lookups.pop(version.number, 0)
        if count:
            self.tree.drop_refs(version.number, count)
            self._forget_current(version)
        return multiple()

    @precondition(lambda self: self.lookups)
    @invariant()
    def known_inodes_resolve_and_keep_their_size(self) -> None:
        for number in {n for n, c in {**self.lookups, **self.opens}.items() if c}:
            inode = self.tree.inode(number)
            assert isinstance(inode, Version)
            assert inode.lookups == self.lookups.get(number, 0)
            if number in self.bound:
                assert inode.size == len(self.bound[number])
            if self.opens.get(number):
                assert inode.content == self.bound[number]

    @invariant()
    def nothing_unknown_is_kept(self) -> None:
        known = {n for n, c in self.lookups.items() if c} | {n for n, c in self.opens.items() if c}
        assert len(self.tree) - 1 <= len(known) + len({self.tree.inode(n).key for n in known})
        if not known:
            assert len(self.tree) == 1

    def _known(self, version: Version) -> bool:
        return bool(self.lookups.get(version.number) or self.opens.get(version.number))

    def _forget_current(self, version: Version) -> None:
        if not self._known(version):
            self.current = {key: number for key, number in self.current.items() if number != version.number}


TestTreeAgainstModel = TreeAgainstModel.TestCase
TestTreeAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_directory_that_is_given_to_the_kernel_after_it_was_dropped_is_back() -> None:
    """While one system call makes a directory, the kernel may forget what a listing said of it."""
    tree = Tree()
    directory = tree.directory(FolderKey("a"))
    tree.add_ref(directory)
    tree.drop_refs(directory.number, 1)
    assert tree.known(FolderKey("a")) is None
    tree.add_ref(directory)
    assert tree.inode(directory.number) is directory
    assert tree.directory(FolderKey("a")) is directory
    tree.drop_refs(directory.number, 1)
    assert tree.known(FolderKey("a")) is None


def test_nothing_leads_to_what_a_store_left_behind() -> None:
    tree = Tree()
    store, folder = tree.directory(FolderKey("a")), tree.directory(FolderKey("a", ("team",)))
    other, file = tree.directory(FolderKey("b")), tree.current(ValueKey("a", "x", "x"))
    for inode in (store, folder, other, file):
        tree.add_ref(inode)
    assert tree.detach_store("a") == [file]
    assert (store.outdated, other.outdated) == (True, False)
    assert tree.directory(FolderKey("a")) is store  # until it is removed
    assert tree.directory(FolderKey("a", ("team",))) is not folder
    assert tree.current(ValueKey("a", "x", "x")) is not file
    assert tree.inode(file.number) is file
