"""Reads secrets with Dapr's client: the names on standard input, ``{store: [name]}``, all that there is in the end.

Writes ``[one by one, at once]``, each ``{store: {name: {key: value}}}``, to standard output.
"""

import json
import sys

from dapr.clients import DaprClient

names = json.load(sys.stdin)
with DaprClient() as client:
    single = {store: {name: dict(client.get_secret(store, name).secret) for name in names[store]} for store in names}
    bulk = {store: {name: dict(one) for name, one in client.get_bulk_secret(store).secrets.items()} for store in names}
json.dump([single, bulk], sys.stdout)
