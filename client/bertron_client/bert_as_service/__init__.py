"""bert-as-service's client, asking a Bertron server: change the import, keep the program.

docs/coming-from-bert-as-service.md lists what is the same, what differs and what is not there;
``python -m bertron_client.bert_as_service.check`` looks for the last two in a program.
"""

from __future__ import annotations

from ._client import BertClient, Response
from ._concurrent import ConcurrentBertClient
from ._server_status import PoolingStrategy

__all__ = ["BertClient", "ConcurrentBertClient", "PoolingStrategy", "Response"]
