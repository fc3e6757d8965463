"""What a place in a YAML document is, whichever way Dapr decodes the document."""

from dataclasses import dataclass, field

from secretfs.dapr.goyaml import Node, ScalarNode, resolve
from secretfs.errors import ConfigurationError, Source


@dataclass(frozen=True, slots=True)
class YamlField:
    """A place in a document, with something there or not. It never says what its value is."""

    path: str
    source: Source
    node: Node | None = field(default=None, repr=False)

    def is_null(self) -> bool:
        """Tell whether there is nothing here."""
        return self.node is None or (isinstance(self.node, ScalarNode) and resolve(self.node) is None)

    def is_scalar(self) -> bool:
        """Tell whether there is a single value here, which may be null."""
        return isinstance(self.node, ScalarNode)

    def mismatch(self, wanted: str, found: str) -> ConfigurationError:
        """Return the error for a value of another kind than the caller needs."""
        return ConfigurationError(f"{self.path or 'the document'} must be {wanted}, not {found}", self.source)


def join(path: str, name: str) -> str:
    """Return the path of a field below ``path``."""
    return f"{path}.{name}" if path else name
