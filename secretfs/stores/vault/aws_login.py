"""The login to Vault with an identity of AWS: a request to STS that is signed here, and that Vault sends in our place.

The keys are those of the component, or what the SDK of AWS finds: roles of EKS, EC2 and containers, profiles.
"""

from typing import Any

from hvac.api.auth_methods import Aws

from secretfs.errors import AccessDenied, ConfigurationError, StoreUnavailable
from secretfs.store import StoreContext
from secretfs.stores.aws.account import Account, sessions
from secretfs.stores.aws.failures import SDK_ERRORS, meaning
from secretfs.stores.aws.transport import Transport
from secretfs.stores.vault.auth import Login
from secretfs.stores.vault.http import PoolAdapter, Response
from secretfs.stores.vault.settings import Settings


def login(settings: Settings, context: StoreContext) -> Login:
    """Return the login of a component. Raises `ConfigurationError`, and sends no request."""
    if bool(settings.aws_access_key) != bool(settings.aws_secret_key):
        raise ConfigurationError("vaultAwsAccessKey and vaultAwsSecretKey count together only")
    transport = Transport(context.component, context.deadline)
    make_session = sessions(context.component, Account(settings.aws_region), transport)

    def find_keys() -> Any:
        session = make_session()
        if settings.aws_access_key:
            session.set_credentials(
                settings.aws_access_key, settings.aws_secret_key, settings.aws_session_token or None
            )
        found = session.get_credentials()
        return found and found.get_frozen_credentials()

    def keys() -> Any:
        """Return the keys as they are now: those of a file or a role change. Raises `StoreError`."""
        try:
            found = find_keys()
        except ConfigurationError as error:  # a file that could be used when the store was opened
            raise StoreUnavailable(str(error)) from None
        except SDK_ERRORS as error:
            failure = meaning("sts", error)
        else:
            if found:
                return found
            where = "neither vaultAwsAccessKey nor the environment, profiles, containers or EC2 have any"
            failure = AccessDenied(f"no credentials: {where}")
        finally:
            transport.close()
        raise failure  # here, where no error is being handled whose text may quote an answer

    def send(adapter: PoolAdapter) -> Response:
        with transport.time.within(adapter.connections.remaining()):
            found = keys()
        answer: Response = Aws(adapter).iam_login(
            found.access_key,
            found.secret_key,
            found.token,
            settings.aws_server_id or None,
            settings.aws_role or None,
            use_token=False,
            region=settings.aws_region,
            mount_point=settings.aws_mount,
        )
        return answer

    return Login("aws", send)
