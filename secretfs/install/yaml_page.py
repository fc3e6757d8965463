"""``secretfs.yaml(5)``: the documents that a mount reads, from the texts that the code has about them."""

import importlib
import inspect
import re
from dataclasses import fields
from typing import Final

from secretfs.cache.freshness import FRESHNESS_HELP, Freshness
from secretfs.durations import show_duration
from secretfs.errors import ConfigurationError
from secretfs.install.roff import Page, bold
from secretfs.registry.annotations import FRESHNESS
from secretfs.settings import specs
from secretfs.stores import BUILTIN, load_store_type

NAME: Final = "secretfs.yaml"
DOCUMENTS: Final = ("secretfs.dapr.app", "secretfs.dapr.rendered_file")
"""Modules that read a kind of document of ours; their text describes it."""

_COMPONENT: Final = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: vault                     # the name of the directory
  annotations: {secretfs/ttl: 30s}
spec:
  type: secretstores.hashicorp.vault
  version: v1
  ignoreErrors: false             # true: mount even if the store cannot be opened
  metadata:
    - {name: vaultAddr, value: "https://vault.example.com:8200"}
    - {name: vaultTokenMountPath, value: /run/secretfs/vault-token}
scopes: [shop]                    # the apps that see it; default: all"""
_CONFIGURATION: Final = """\
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: shop}
spec:
  secrets:
    scopes:
      - storeName: vault
        defaultAccess: deny       # or allow, the default
        allowedSecrets: [db]
        deniedSecrets: []"""


def yaml_page(version: str) -> Page:
    """Write the page. A store whose library is not installed has the command that installs it for its settings."""
    page = Page(NAME, 5, "documents that secretfs mounts from", version)
    page.heading("DESCRIPTION")
    page.paragraph(
        "secretfs reads all files *.yaml and *.yml in the directories that --resources-path names, and the files that"
        " --config names. A file may have several documents. Documents of other kinds are passed over."
    )
    page.heading("COMPONENTS")
    page.paragraph("A secret store, as for Dapr. Each is a directory in the mount.")
    page.literal(_COMPONENT)
    _write_annotations(page)
    page.heading("CONFIGURATION")
    page.paragraph("What of the stores an app may see, as for Dapr.")
    page.literal(_CONFIGURATION)
    for module in DOCUMENTS:
        _write_document(page, module)
    _write_stores(page)
    return page


def _write_annotations(page: Page) -> None:
    page.subheading("Annotations")
    page.paragraph("Settings that Dapr does not have. They are durations such as 30s or 5m.")
    default = Freshness()
    for annotation, name in FRESHNESS.items():
        seconds = getattr(default, name)
        shown = f" Default: {show_duration(seconds)}." if seconds else ""
        page.item(bold(annotation), f"{FRESHNESS_HELP[name].capitalize()}.{shown}")


def _write_document(page: Page, module: str) -> None:
    """Write what the text of a module says to users: its title, and all up to its last example."""
    title, *blocks = re.split(r"\n\s*\n", inspect.getdoc(importlib.import_module(module)) or "")
    while blocks and not blocks[-1].startswith(" "):
        blocks.pop()
    page.heading(title.partition(":")[0].upper())
    for block in blocks:
        if block.startswith(" "):
            page.literal(inspect.cleandoc(block))
        else:
            page.paragraph(block.replace("::", ":").replace("``", ""))


def _write_stores(page: Page) -> None:
    page.heading("STORES")
    page.paragraph(
        'What a component may name as its spec.type, with what may stand in its spec.metadata. "See below" means the'
        " page of the store in the documentation."
    )
    for type_name in BUILTIN:
        page.subheading(type_name)
        try:
            settings = load_store_type(type_name).Settings
        except ConfigurationError as error:  # its library is not installed
            page.paragraph(str(error))
            continue
        defaults = {field.name: field.default for field in fields(settings)}
        for name, spec in specs(settings).items():
            required = " Required." if spec.required else ""
            shown = f" Default: {defaults[name]}." if isinstance(defaults[name], str) and defaults[name] else ""
            page.item(bold(", ".join((spec.name, *spec.aliases))), f"{spec.help}{required}{shown}")
