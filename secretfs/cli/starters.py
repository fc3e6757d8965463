"""What `secretfs init` knows of each store type: what to ask for, and how a first secret gets into the store.

The components themselves are YAML files beside this module. No question asks for a secret: a component says where the
credentials are.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final


@dataclass(frozen=True, slots=True)
class Question:
    """A property whose value the user decides."""

    setting: str
    """The property."""
    text: str
    default: str | Callable[[], str] = ""
    """Empty if there is none: then it has to be given."""

    @property
    def proposal(self) -> str:
        """The default."""
        return self.default if isinstance(self.default, str) else self.default()


@dataclass(frozen=True, slots=True)
class Starter:
    """How to begin with a store type."""

    title: str
    questions: tuple[Question, ...]
    first: tuple[str, ...]
    """Lines to type, which put a first secret into the store. The answers stand in for ``${property}``.

    No secret is an argument in them: it is asked for, or read from standard input."""
    name: str = ""
    """What the component is called, if that is not the name of the starter."""
    file: str = ""
    """The property that names a file which may be made, empty, so that there is a store."""
    directory: str = ""
    """Likewise, a directory."""


def _token() -> str:
    """Return where `bao login` and `vault login` leave the token."""
    return str(Path("~/.vault-token").expanduser())


_REGION: Final = Question("region", "Region")
_CONSOLE: Final = "in the console of the cloud"

STARTERS: Final[Mapping[str, Starter]] = {
    "vault": Starter(
        "HashiCorp Vault or OpenBao",
        (
            Question("vaultAddr", "URL of the server", "https://127.0.0.1:8200"),
            Question("enginePath", "Where the KV engine is mounted", "secret"),
            Question("vaultKVPrefix", "Folder of the engine to serve", "shop"),
            Question("vaultTokenMountPath", "File with the token", _token),
        ),
        ("bao kv put -mount=${enginePath} ${vaultKVPrefix}/db username=shop password=-",),
    ),
    "kubernetes": Starter(
        "the secrets of a Kubernetes namespace",
        (Question("defaultNamespace", "Namespace", "default"),),
        ("kubectl create secret generic db --namespace=${defaultNamespace} --from-file=password=/dev/stdin",),
        name="k8s",
    ),
    "aws": Starter(
        "AWS Secrets Manager",
        (_REGION,),
        ("aws secretsmanager create-secret --region ${region} --name shop/db --secret-string file:///dev/stdin",),
    ),
    "aws-parameters": Starter(
        "AWS Systems Manager Parameter Store",
        (_REGION, Question("prefix", "What the names begin with", "/shop/")),
        (
            "aws ssm put-parameter --region ${region} --name ${prefix}db/password --type SecureString \\",
            "    --value file:///dev/stdin",
        ),
    ),
    "azure": Starter(
        "Azure Key Vault",
        (Question("vaultName", "Name of the vault"),),
        ("az keyvault secret set --vault-name ${vaultName} --name db-password --file /dev/stdin",),
    ),
    "gcp": Starter(
        "GCP Secret Manager",
        (Question("project_id", "Project"),),
        ("gcloud secrets create db-password --project=${project_id} --data-file=-",),
    ),
    "file": Starter(
        "a JSON file, for development",
        (Question("secretsFile", "Path of the file", "secrets.json"),),
        ('in ${secretsFile}: {"db": {"password": "..."}}',),
        file="secretsFile",
    ),
    "directory": Starter(
        "a directory whose files are secrets",
        (Question("path", "Path of the directory", "secrets"),),
        ("(umask 077; cat > ${path}/db-password)",),
        name="files",
        directory="path",
    ),
    "env": Starter(
        "environment variables, for development",
        (Question("prefix", "What the names of the variables begin with", "SHOP_"),),
        ("read -rs ${prefix}DB_PASSWORD && export ${prefix}DB_PASSWORD",),
    ),
    "keyring": Starter(
        "the keyring of a desktop",
        (Question("nameAttributes", "Attributes of an item that make its name", "service, username"),),
        ('secret-tool store --label="shop database" service shop username app',),
    ),
    "sops": Starter(
        "a file that SOPS has encrypted",
        (Question("secretsFile", "Path of the file", "secrets.enc.yaml"),),
        ("sops edit ${secretsFile}",),
    ),
    "alicloud": Starter("Alibaba Cloud OOS", (Question("regionId", "Region"),), (_CONSOLE,)),
    "huaweicloud": Starter("Huawei Cloud CSMS", (_REGION,), (_CONSOLE,)),
    "tencentcloud": Starter("Tencent Cloud Secrets Manager", (_REGION,), (_CONSOLE,)),
}
"""By the name that ``--store`` takes. The usual ones come first."""


def component(store: str, name: str, answers: Mapping[str, str]) -> str:
    """Return the component of a starter as YAML. The answers are quoted where YAML needs that."""
    template = (files(__package__) / "starters" / f"{store}.yaml").read_text(encoding="utf-8")
    return Template(template).substitute({key: json.dumps(value) for key, value in {"name": name, **answers}.items()})
