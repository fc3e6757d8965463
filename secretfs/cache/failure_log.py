"""What is wrong with a store, told once: a program that polls must not fill the log."""

import logging
from typing import Final

from secretfs.errors import StoreError

Question = tuple[str, str]
"""What a store was asked: the kind of question, and the secret or folder."""

REMEMBERED: Final = 1000
"""Questions with trouble of their own that are remembered; what is forgotten would be told again."""

log = logging.getLogger(__name__)


class Troubles:
    """Tells of each trouble of one store when it begins and when its reason changes, and of an outage when it ends."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._outage = ""
        self._reasons: dict[Question, str] = {}

    def refused(self, question: Question, error: StoreError) -> None:
        """Tell that a question is refused."""
        if self._remember(question, str(error)):
            log.warning("%s: %s", self._component, error)

    def failed(self, question: Question, error: StoreError) -> None:
        """Tell that the store fails, whatever it was asked.

        A question that failed so before, and has not been answered since, tells nothing of the store: what is in the
        way may be its secret alone, while others are answered all the time.
        """
        _, _, reason = str(error).partition(": ")  # what comes first is what was asked for
        reason = reason or str(error)
        if reason != self._outage and self._remember(question, reason):
            self._outage = reason
            log.warning("%s: %s", self._component, error)

    def answered(self, question: Question) -> None:
        """Forget the trouble with a question."""
        self._reasons.pop(question, None)

    def over(self) -> None:
        """Tell that the store answers again, if it was told that it does not."""
        if self._outage:
            self._outage = ""
            log.info("%s: answers again", self._component)

    def _remember(self, question: Question, reason: str) -> bool:
        """Note what is in the way of a question. Returns whether that is new."""
        if self._reasons.get(question) == reason:
            return False
        self._reasons.pop(question, None)
        self._reasons[question] = reason
        if len(self._reasons) > REMEMBERED:
            del self._reasons[next(iter(self._reasons))]
        return True
