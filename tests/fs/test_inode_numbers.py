"""Inode numbers: none is issued twice, and those of one app tell nothing of another."""

import os
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from secretfs.fs.inode_numbers import NUMBER_BITS, InodeNumbers
from secretfs.fs.journal import Journal
from secretfs.fs.keys import AppKey, FolderKey, RootKey, ValueKey

COUNTED = 1 << (NUMBER_BITS - 1)
"""Numbers below are of versions of secretfs that counted."""


def of(app: str) -> ValueKey:
    return ValueKey(f"{app}/vault", "db", "password")


def test_the_root_is_first() -> None:
    assert InodeNumbers(Journal()).take(RootKey()) == 1


@given(st.lists(st.sampled_from(["orders", "billing", "third"]), max_size=2000))
def test_none_is_issued_twice_whatever_process_serves(apps: list[str]) -> None:
    journal = Journal()
    numbers = InodeNumbers(journal)
    taken = []
    for place, app in enumerate(apps):
        if place % 700 == 699:
            numbers = InodeNumbers(Journal(os.dup(journal.file)))
        taken.append(numbers.take(of(app)))
    assert len(set(taken)) == len(taken)
    assert all(COUNTED <= number < 1 << NUMBER_BITS for number in taken)


def test_the_later_of_two_can_be_told() -> None:
    journal = Journal()
    counted = [journal.take_number() for _ in range(9)]  # by a version of secretfs that did
    numbers = InodeNumbers(journal)
    taken = [*counted, *(numbers.take(of(app)) for app in ["orders"] * 10_000)]
    assert sorted(taken, key=numbers.age) == taken
    assert taken != sorted(taken)  # the numbers themselves do not tell: there are 40 blocks


def test_those_of_one_app_do_not_depend_on_others() -> None:
    """The same app gets numbers whose distances are the same whether another one looks up much or nothing."""

    def distances(others: int) -> list[int]:
        numbers = InodeNumbers(Journal())
        taken = []
        for _ in range(200):
            taken.append(numbers.take(of("orders")))
            for _ in range(others):
                numbers.take(of("billing"))
        return [later - earlier for earlier, later in pairwise(taken)]

    assert distances(0) == distances(7) == [1] * 199


def test_nobody_can_tell_how_many_blocks_are_before_another() -> None:
    """With another key, and so for who does not know it, the order of the blocks is another one."""

    def blocks() -> list[int]:
        numbers = InodeNumbers(Journal())
        return [numbers.take(AppKey(f"app-{number}")) for number in range(1000)]

    first, second = blocks(), blocks()
    assert not set(first) & set(second)
    rises = sum(later > earlier for earlier, later in pairwise(first))
    assert 400 < rises < 600  # a counter would rise each time; a coin that falls so unevenly is one in 10**9


def test_the_directory_of_an_app_has_a_number_of_its_own_block() -> None:
    numbers = InodeNumbers(Journal())
    keys: list[AppKey | FolderKey] = [AppKey("orders"), AppKey("billing"), FolderKey("orders/vault")]
    taken = [numbers.take(key) for key in keys]
    assert len({number >> 8 for number in taken}) == 3
    numbers.forget(["orders"])
    distances = [numbers.take(key) - before for key, before in zip(keys, taken, strict=True)]
    assert [distance == 1 for distance in distances] == [False, True, False]
