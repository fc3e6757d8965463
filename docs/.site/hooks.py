"""What mkdocs does besides: README.md and CHANGELOG.md, which are not in docs/, become pages, and links fit the site.

Where a link of a page leads out of docs/, it leads to the repository. Headings get the anchors that GitHub gives them.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify
from pymdownx.superfences import fence_code_format

ADDED = {"README.md": "overview.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root, and where they are in the site."""

_ORIGINAL = {page: name for name, page in ADDED.items()}
_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set what YAML can only say with tags: diagrams, and anchors as GitHub has them."""
    fences = [{"name": "mermaid", "class": "mermaid", "format": fence_code_format}]
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": fences}
    config.mdx_configs["toc"] = {"slugify": slugify(case="lower"), "permalink": True}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, page in ADDED.items():
        files.append(File.generated(config, page, abs_src_path=str(_root(config) / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to where their targets are in the site, else to the repository."""
    here = page.file.src_uri
    original = _ORIGINAL.get(here, f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(original), link[2]))
        in_site = ADDED.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if files.get_file_from_path(in_site) is not None:
            return link[1] + posixpath.relpath(in_site, posixpath.dirname(here) or ".")
        if not (_root(config) / target).exists():
            return link[0]  # mkdocs will say that it leads nowhere
        kind = "tree" if (_root(config) / target).is_dir() else "blob"
        return f"{link[1]}{(config.repo_url or '').rstrip('/')}/{kind}/main/{target}"

    parts = _CODE.split(markdown)
    return "".join(part if at % 2 else _LINK.sub(led, part) for at, part in enumerate(parts))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent
