"""The account of the AWS stores: which region, which credentials. Properties and their order are Dapr's.

dapr/components-contrib ``common/aws/config.go`` is the model: both keys are static credentials; without them the
default chain of the SDK counts (environment, shared files and profiles, SSO, web identity, containers, EC2). Regions
are found as the SDK for Go finds them, which reads AWS_REGION; botocore alone does not.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import botocore.session
from botocore.config import Config
from botocore.credentials import AssumeRoleWithWebIdentityProvider, ContainerProvider, CredentialResolver
from botocore.exceptions import BotoCoreError, CredentialRetrievalError, ProfileNotFound
from botocore.loaders import Loader, create_loader
from botocore.utils import ContainerMetadataFetcher

from secretfs.errors import ConfigurationError
from secretfs.settings import setting
from secretfs.stores._http.address import require_url
from secretfs.stores._token_file import TOKEN_FILE, token_file
from secretfs.stores.aws.transport import Transport

logger = logging.getLogger(__name__)

ANNOTATIONS: Final = frozenset({TOKEN_FILE})
_ENDPOINT = "https://vpce-1.secretsmanager.eu-central-1.vpce.amazonaws.com"
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_ROLES_ANYWHERE = """\
trustAnchorArn, trustProfileArn and assumeRoleArn log in with the identity of Dapr's sidecar, which secretfs does not \
have; name AWS's aws_signing_helper as credential_process in a profile instead"""


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """The properties that both stores have. There is no ``repr``: they hold credentials."""

    region: str = setting(
        "region",
        "Region, such as eu-central-1. Without it AWS_REGION counts, then AWS_DEFAULT_REGION, then the profile.",
        guards=True,
    )
    access_key: str = setting("accessKey", "Access key id. Without it, credentials are looked for: see below.")
    secret_key: str = setting("secretKey", "Secret access key. Counts only together with accessKey.")
    session_token: str = setting("sessionToken", "Session token of temporary keys.")
    endpoint: str = setting(
        "endpoint", "URL for all requests, those to STS included: a VPC endpoint, or a server for tests.", guards=True
    )
    trust_anchor_arn: str = setting("trustAnchorArn", "IAM Roles Anywhere, which is not supported: see below.")
    trust_profile_arn: str = setting("trustProfileArn", "The same.")
    assume_role_arn: str = setting(
        "assumeRoleArn",
        "The role to take with secretfs/token-file. Else the same; alone it does nothing, as in Dapr: see below.",
    )


class Session(botocore.session.Session):  # type: ignore[misc]  # botocore has no types
    """A session of botocore that sends everything through one transport, to one endpoint if there is one.

    botocore makes clients of its own for STS and SSO; they come by here, too.
    """

    def __init__(self, account: Account, transport: Transport, token: str = "") -> None:
        super().__init__()
        self.register_component("data_loader", _data())
        self._account = account
        quiet_sdk()
        # One attempt: what is worth another one is decided by the store, and by secretfs.cache.
        self.set_default_client_config(Config(retries={"total_max_attempts": 1}, user_agent_extra="secretfs"))
        self.region = self._resolve_region()
        self.set_config_variable("region", self.region)
        self.register("before-send", transport.send_for_sdk)
        if token:
            self.register_component("credential_provider", self._web_identity(token))
            return
        chain = self.get_component("credential_provider")
        for provider in chain.providers:
            if hasattr(provider, "_prompter"):  # no way of its own to say that nobody is there who could be asked
                provider._prompter = _refuse_to_ask  # noqa: SLF001
        container = ContainerProvider(fetcher=_ContainerMetadata(_ForAgents(transport), sleep=lambda _: None))
        chain.providers = [container if isinstance(it, ContainerProvider) else it for it in chain.providers]

    def create_client(self, service_name: str, *args: Any, **options: Any) -> Any:
        """Make a client, as botocore does."""
        if self._account.endpoint:
            options["endpoint_url"] = self._account.endpoint
        return super().create_client(service_name, *args, **options)

    def client(self, service: str) -> Any:
        """Make a client of a service. Looks for credentials, which may take requests. Raises what botocore does."""
        account = self._account
        if not (account.access_key and account.secret_key):
            return self.create_client(service)
        return self.create_client(
            service,
            aws_access_key_id=account.access_key,
            aws_secret_access_key=account.secret_key,
            aws_session_token=account.session_token or None,
        )

    def _web_identity(self, token: str) -> CredentialResolver:
        """Return what exchanges the token in a file, as it is then, for credentials of the role; and nothing else."""
        profile = {"web_identity_token_file": token, "role_arn": self._account.assume_role_arn}
        provider = AssumeRoleWithWebIdentityProvider(
            load_config=lambda: {"profiles": {"pod": profile}},
            client_creator=self.create_client,
            profile_name="pod",
            disable_env_vars=True,
        )
        return CredentialResolver([provider])

    def _resolve_region(self) -> str:
        region = (
            self._account.region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or self.get_config_variable("region")
        )
        if not region:
            raise ConfigurationError("there is no region: neither here, nor in AWS_REGION, nor in a profile")
        if not _REGION.fullmatch(region):
            raise ConfigurationError("region is not the name of a region")
        return str(region)


@functools.cache
def _data() -> Loader:
    """Return what reads the models of the services. Shared, because it keeps them, and finding them costs most."""
    return create_loader()


def _refuse_to_ask(_: str) -> str:
    """Stand in for the prompt for a code of a device (MFA)."""
    raise CredentialRetrievalError(provider="assume-role", error_msg="the role wants a code of a device")


class _ForAgents:
    """The transport as a session of botocore."""

    def __init__(self, transport: Transport) -> None:
        self.send = transport.send_for_sdk


class _ContainerMetadata(ContainerMetadataFetcher):  # type: ignore[misc]
    """Asks the agent of EKS or ECS once. Theirs asks three times, for two seconds each, and one connection each."""

    RETRY_ATTEMPTS = 1


def token_of(account: Account, annotations: Mapping[str, str]) -> str:
    """Return the path of the token that the role is taken with; empty if there is none. Raises `ConfigurationError`."""
    token = token_file(annotations, {"accessKey": account.access_key, "secretKey": account.secret_key})
    if token and not account.assume_role_arn:
        raise ConfigurationError(f"{TOKEN_FILE} takes a role: give assumeRoleArn")
    return token


def sessions(component: str, account: Account, transport: Transport, token: str = "") -> Callable[[], Session]:
    """Return what makes sessions: a new one reads files and environment anew, or the file ``token``. Sends no request.

    Raises `ConfigurationError` for what can never work.
    """
    require_url("endpoint", account.endpoint, _ENDPOINT, may_have_path=True)
    given = (account.trust_anchor_arn, account.trust_profile_arn, account.assume_role_arn)
    if all(given):
        raise ConfigurationError(_ROLES_ANYWHERE)
    if any(given[:2] if token else given):
        logger.warning("%s: trustAnchorArn, trustProfileArn and assumeRoleArn do nothing, as in Dapr", component)
    if bool(account.access_key) != bool(account.secret_key):
        logger.warning("%s: accessKey and secretKey count together only, as in Dapr: this one is ignored", component)

    def make() -> Session:
        try:
            return Session(account, transport, token)
        except ProfileNotFound:
            raise ConfigurationError("the profile that AWS_PROFILE names is in no file") from None
        except BotoCoreError as error:
            raise ConfigurationError(f"the configuration files of AWS: {type(error).__name__}") from None

    make()
    return make


def quiet_sdk() -> None:
    """Silence the logs of the SDK, which quote answers. Failures become errors of the store."""
    logging.getLogger("botocore").setLevel(logging.CRITICAL + 1)
