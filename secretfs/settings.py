"""How a component's properties become a store's typed settings.

Dapr's rules (dapr/kit ``metadata/utils.go``): property names match without regard to case, an alias counts only when
the canonical name is absent, two properties that differ only in case are an error, a boolean is true for
y/yes/true/t/on/1 and false for every other text, unknown properties are ignored. We ignore them aloud, with the
nearest name that exists.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from secretfs.errors import ConfigurationError, Notice, Source

SettingsT = TypeVar("SettingsT")

_TRUTHY = frozenset({"y", "yes", "true", "t", "on", "1"})
_GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What Go's ``strings.TrimSpace`` takes off. Python's ``strip`` takes four control characters more."""


class Named(Protocol):
    """What has a name and a place: an item of ``spec.metadata``, resolved or not."""

    @property
    def name(self) -> str:
        """As written."""

    @property
    def source(self) -> Source | None:
        """Where it is written."""


@dataclass(frozen=True, slots=True)
class Property:
    """One resolved item of ``spec.metadata``. Its value may be a credential, so ``repr`` does not show it."""

    name: str
    value: str = field(repr=False)
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """What a settings field says about itself: it decodes the property and writes the table in the docs."""

    name: str
    help: str
    aliases: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    required: bool = False
    guards: bool = False


def truthy(text: str) -> bool:
    """Read a boolean as Dapr does: anything that is not clearly yes is no, and nothing is an error."""
    return text.strip(_GO_SPACE).lower() in _TRUTHY


def setting(
    name: str,
    help: str,  # noqa: A002 - the word click and argparse use for the same thing
    *,
    default: Any = "",
    aliases: Iterable[str] = (),
    parse: Callable[[str], Any] = str,
    required: bool = False,
    guards: bool = False,
) -> Any:
    """Declare a field of a store's ``Settings`` dataclass.

    ``parse`` turns the property's text into the field's value and raises ValueError, with a message that does not
    repeat the text, when it cannot. ``required`` fields must be present and not empty. A field that ``guards`` says
    where secrets come from or what protects the way to them: its default must not count because of a typo.
    """
    spec = SettingSpec(name, help, tuple(aliases), parse, required, guards)
    return field(default=default, metadata={"setting": spec})


def every_property() -> Any:
    """Declare the only field of a ``Settings`` dataclass that takes all properties: name, as written, to value.

    For a store that does not know what properties there are.
    """
    return field(default_factory=dict, metadata={"every property": True})


def specs(settings: type) -> dict[str, SettingSpec]:
    """Map the dataclass field names of ``settings`` to what they declare, in order."""
    return {f.name: f.metadata["setting"] for f in fields(settings) if "setting" in f.metadata}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the known name most like ``word``, or an empty string."""
    name = nearest_name(word, known)
    return f" (did you mean {name}?)" if name else ""


def nearest_name(word: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``word``, or None if there is none like it."""
    import difflib  # noqa: PLC0415 - for mistakes only

    lowered = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[match[0]] if match else None


def decode(
    settings: type[SettingsT], properties: Iterable[Property], source: Source | None = None
) -> tuple[SettingsT, list[Notice]]:
    """Fill ``settings`` from ``properties``. Returns it with a notice for each property that nothing reads.

    Raises `ConfigurationError` naming file, line and field for a duplicate, a value that does not parse, or a required
    setting that is missing; ``source`` is where the component is declared, for what is not there at all.
    """
    everything = _field_of_every_property(settings)
    if everything:
        return settings(**{everything: {prop.name: prop.value for prop in properties}}), []
    given = _by_lowercase_name(properties)
    declared = specs(settings)
    values: dict[str, Any] = {}
    for attribute, spec in declared.items():
        found = _first(given, (spec.name, *spec.aliases))
        if spec.required and (found is None or not found.value):
            raise ConfigurationError(f"{spec.name} is required: {spec.help}", found.source if found else source)
        if found is None:
            continue
        try:
            values[attribute] = spec.parse(found.value)
        except ValueError as error:
            raise ConfigurationError(f"{spec.name}: {error}", found.source) from None
    return settings(**values), unknown_properties(settings, given.values())


def unknown_properties(settings: type, properties: Iterable[Named]) -> list[Notice]:
    """Return a notice for each property that nothing reads, with the nearest name that would be."""
    if _field_of_every_property(settings):
        return []
    properties = list(properties)
    given = {prop.name.lower() for prop in properties}
    owners = {name: spec for spec in specs(settings).values() for name in (spec.name, *spec.aliases)}
    known = {name.lower() for name in owners}
    return [_unknown(prop, owners, given) for prop in properties if prop.name.lower() not in known]


def _field_of_every_property(settings: type) -> str:
    return next((f.name for f in fields(settings) if "every property" in f.metadata), "")


def _unknown(prop: Named, owners: Mapping[str, SettingSpec], given: Set[str]) -> Notice:
    message = f"unknown property {prop.name} is ignored{nearest(prop.name, owners)}"
    meant = owners.get(nearest_name(prop.name, owners) or "")
    if meant is None or not meant.guards or given & {name.lower() for name in (meant.name, *meant.aliases)}:
        return Notice(message, prop.source)
    return Notice(f"{message}: {meant.name} has its default", prop.source, unsafe=True)


def _by_lowercase_name(properties: Iterable[Property]) -> dict[str, Property]:
    """Index by lowercase name. Of one name twice the last wins; two spellings of a name are an error."""
    exact: dict[str, Property] = {prop.name: prop for prop in properties}
    given: dict[str, Property] = {}
    for prop in exact.values():
        earlier = given.setdefault(prop.name.lower(), prop)
        if earlier is not prop:
            raise ConfigurationError(f"{prop.name} is given twice, the other time as {earlier.name}", prop.source)
    return given


def _first(given: Mapping[str, Property], names: Iterable[str]) -> Property | None:
    return next((given[name.lower()] for name in names if name.lower() in given), None)
