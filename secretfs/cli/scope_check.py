"""Names in secret scopes that no secret has: most often a typo, which shows as a secret that is not there."""

from secretfs.errors import AccessDenied, Notice
from secretfs.scopes import SecretScope
from secretfs.store import Names, SecretStore


def unmatched(store: SecretStore, component: str, scope: SecretScope, top: Names) -> list[Notice]:
    """Warn of the names in a scope that no secret of the store has, where the store lists what could have them.

    ``top`` is what the store has listed. Raises `StoreError`.
    """
    notices = []
    for field, names in (("allowedSecrets", scope.allowed_secrets), ("deniedSecrets", scope.denied_secrets)):
        missing = sorted(name for name in names - top.secrets if not _is_listed(store, name, top))
        if missing:
            notices.append(Notice(f"{field} of the store {component}: it has no secret {', '.join(missing)}"))
    return notices


def _is_listed(store: SecretStore, name: str, top: Names) -> bool:
    """Look a name up in its own folder. One that may not be listed counts as having it."""
    folder = name.rpartition("/")[0]
    if not top.folders or not folder:
        return False
    try:
        return name in store.names(folder).secrets
    except AccessDenied:
        return True
