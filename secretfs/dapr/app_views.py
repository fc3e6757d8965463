"""A mount for many apps: which components are opened, and which app sees which of them.

A component that several apps may see is opened once, unless its properties depend on the app: then each app has one of
its own, named ``APP/COMPONENT``. Apps with the same app id and the same tokens are one and the same to every store, so
they share theirs, named ``APP-ID@TOKENS/COMPONENT``. All these names begin with that of the set if the app sees one
(`secretfs.dapr.resource_set`). Names stay the same when another app comes or goes, so that its
stores are untouched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from secretfs.dapr.app import App, load_apps
from secretfs.dapr.component import Component, load_manifests
from secretfs.dapr.configuration import Configuration, load_configurations
from secretfs.dapr.declaration import Declaration, DeclaredStore, visible_components
from secretfs.dapr.file_views import load_file_views
from secretfs.dapr.references import TemplateContext, component_references, depends_on_app
from secretfs.dapr.rendered_file import load_files
from secretfs.dapr.resource_set import ResourceSet, ResourceSets
from secretfs.errors import ConfigurationError, Notice
from secretfs.scopes import ALLOW_ALL
from secretfs.settings import nearest


def load_for_apps(
    resources: Sequence[Path],
    configs: Sequence[Path],
    apps: Sequence[Path],
    environ: Mapping[str, str],
    *,
    builtin: bool = True,
    app_resources: Path | None = None,
    app_objects: Path | None = None,
) -> Declaration:
    """Read all files for all apps. Raises `ConfigurationError` for the first thing that is wrong.

    ``app_resources`` is the directory below which are the sets that apps name as their ``resources``, ``app_objects``
    that of those that they name as their ``objects``. An app that sees no store is noted: its directory is empty until
    there is one.
    """
    manifests = load_manifests(resources, namespace=environ.get("NAMESPACE", ""))
    everybody = ResourceSet(manifests, load_configurations(configs, environ), tuple(resources))
    rendered = {file.directory for file in load_files(tuple(dict.fromkeys(apps)))} if app_objects else ()
    sets = ResourceSets(everybody, app_resources, app_objects, rendered)
    notices = list(manifests.notices)
    declared = load_apps(apps, notices)
    directories: dict[str, Sequence[Path]] = {}
    opened: dict[str, Component] = {}
    stores: dict[str, DeclaredStore] = {}
    for app in declared:
        own = sets.of(app)
        directories[app.name] = (*own.directories, *apps)
        configuration = _configuration_of(app, own)
        app_id = app.app_id or app.name
        if configuration is None:
            text = f"app {app.name} sees nothing: there is no Configuration {app.configuration} in {app.objects}"
            notices.append(Notice(text, app.source))
            continue
        components, remarks = visible_components(
            own.manifests, configuration, app_id, environ, builtin=builtin and own is everybody
        )
        notices += (*own.manifests.notices, *remarks)
        if not components:
            notices.append(Notice(f"app {app.name} sees no secret store: its directory is empty", app.source))
        for name, component in _instances(app, app_id, components, own.prefix).items():
            opened[component.name] = component
            scope = configuration.scopes.get(name, ALLOW_ALL)
            stores[f"{app.name}/{name}"] = DeclaredStore(component.name, scope)
    by_name = {app.name: app for app in declared}
    context = TemplateContext(environ)
    files = load_file_views(directories, stores, by_name, "", notices)
    return Declaration(tuple(opened.values()), stores, context, tuple(dict.fromkeys(notices)), by_name, files)


def _configuration_of(app: App, own: ResourceSet) -> Configuration | None:
    """Return the Configuration that an app names; without a name, the only one there is.

    In a set of objects, one that is not named does not count, as in Dapr without the annotation ``dapr.io/config``; and
    None says that the one that is named is not there, which is nobody else's business.
    """
    configurations = own.configurations
    if app.objects:
        return configurations.get(app.configuration) if app.configuration else Configuration()
    if app.configuration:
        if app.configuration not in configurations:
            hint = nearest(app.configuration, tuple(configurations))
            raise ConfigurationError(f"there is no Configuration named {app.configuration}{hint}", app.source)
        return configurations[app.configuration]
    if len(configurations) > 1:
        names = ", ".join(sorted(configurations))
        raise ConfigurationError(f"app {app.name} has to say which configuration is its own: {names}", app.source)
    return next(iter(configurations.values()), Configuration())


def _instances(app: App, app_id: str, components: Sequence[Component], prefix: str) -> dict[str, Component]:
    """Return what is opened for the components that an app sees, by the name that the app knows.

    ``prefix`` is that of their set.

    Two components of one name never meet here: the app that sees the first of them is refused (dapr ``disk.go``).
    """
    by_name = {component.name: component for component in components}
    own: set[str] = set()
    while more := {
        c.name for c in components if c.name not in own and (depends_on_app(c) or component_references(c) & own)
    }:
        own |= more

    owner = f"{app_id}@{quote(app.tokens, safe='')}" if app.tokens else app_id  # as all apps of the same id

    def opened_name(name: str) -> str:
        return prefix + (f"{owner}/{name}" if name in own else name)

    def named(component: Component) -> Component:
        source = component.secret_store and opened_name(component.secret_store)
        return replace(component, name=opened_name(component.name), secret_store=source)

    def opened(component: Component) -> Component:
        if component.name not in own:
            return named(component) if prefix else component
        return replace(
            named(component),
            app_id=app_id,
            tokens=app.tokens,
            # That one identity is refused is between it and the store: its files say so, and nobody else's business.
            ignore_errors=component.ignore_errors or bool(app.tokens),
        )

    return {name: opened(component) for name, component in by_name.items()}
