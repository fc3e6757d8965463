"""What stores of clouds share: pages, and the deadline of all requests of one call."""

import pytest

from secretfs.errors import MalformedAnswer, SecretNotFound
from secretfs.store import Secret
from secretfs.stores._cloud import CloudStore, Page
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.trust import system_trust


class Numbers(CloudStore):
    """Three pages of names, and the time that was left for each."""

    refused = ""

    def __init__(self) -> None:
        super().__init__(Exchange(60, system_trust("store")))
        self.left: list[float] = []

    def _page(self, mark: str, size: int) -> Page:
        self.left.append(self._exchange.time.left())
        if mark == self.refused:
            raise SecretNotFound("no page that the cloud takes")
        number = int(mark or 1)
        return [f"secret{number}", ""], "" if number == 3 else str(number + 1)

    def _read(self, name: str) -> Secret:
        raise SecretNotFound("nothing is here")


def test_all_pages_have_one_deadline() -> None:
    store = Numbers()
    store.refused = "none"
    assert store.names("").secrets == {"secret1", "secret2", "secret3"}
    first, second, third = store.left
    assert 60 > first > second > third


@pytest.mark.parametrize("refused", ["", "2"])
def test_a_page_that_is_refused_is_no_secret_that_is_missing(refused: str) -> None:
    store = Numbers()
    store.refused = refused
    with pytest.raises(MalformedAnswer, match=r"^list of secrets: no page that the cloud takes$"):
        store.names("")
