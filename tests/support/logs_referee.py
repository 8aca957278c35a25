"""Referee of the fake log services: the official Python clients must understand what they answer.

Called with the address of the fake Google Cloud, that of the fake Azure log services, and a log name
whose entries were written before. Prints one line per expectation; exit status 1 if one is not met.
"""

import sys
import time
from datetime import datetime, timedelta, timezone

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.monitor.query import LogsQueryClient, LogsQueryStatus
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import logging

GOOGLE, AZURE, PROJECT, WORKSPACE = sys.argv[1:5]
findings = []


def expect(what, condition, seen=""):
    print(f"{'ok  ' if condition else 'BAD '} {what} {seen if not condition else ''}".rstrip())
    if not condition:
        findings.append(what)


class Credential:
    def get_token(self, *scopes, **kwargs):
        return AccessToken("reader", int(time.time()) + 3600)

    def get_token_info(self, *scopes, options=None):
        from azure.core.credentials import AccessTokenInfo

        return AccessTokenInfo("reader", int(time.time()) + 3600)


client = logging.Client(
    project=PROJECT, credentials=AnonymousCredentials(), client_options=ClientOptions(api_endpoint=GOOGLE), _use_grpc=False
)
wanted = 'logName:"cloudaudit.googleapis.com%2Factivity" AND timestamp>="2020-01-01T00:00:00Z"'
entries = list(client.list_entries(filter_=wanted, page_size=1))
expect("google: every page is read", len(entries) >= 2, entries)
entry = entries[-1] if entries else None
expect("google: the entry is an audit log", entry is not None and entry.payload.get("serviceName") == "cloudkms.googleapis.com", entry)
expect("google: it names the caller", entry is not None and "principalEmail" in entry.payload["authenticationInfo"], entry)
expect("google: it has an id and a time", entry is not None and entry.insert_id and entry.timestamp.tzinfo is not None, entry)

# The library sends no token over plain http unless told so.
azure = LogsQueryClient(Credential(), endpoint=f"{AZURE}/v1")
span = (datetime.now(timezone.utc) - timedelta(days=3650), datetime.now(timezone.utc))
answer = azure.query_workspace(WORKSPACE, "AZKVAuditLogs | take 10", timespan=span, enforce_https=False)
expect("azure: the answer is whole", answer.status == LogsQueryStatus.SUCCESS, answer.status)
table = answer.tables[0]
expect("azure: the columns are known", {"TimeGenerated", "OperationName", "CorrelationId", "Identity"} <= set(table.columns), table.columns)
expect("azure: there are rows", len(table.rows) >= 1 and table.rows[0]["OperationName"] == "KeyUpdate", table.rows)
expect("azure: times are times", bool(table.rows) and isinstance(table.rows[0]["TimeGenerated"], datetime), table.rows)
for workspace, status in (("missing", 404), ("denied", 403)):
    try:
        azure.query_workspace(workspace, "AZKVAuditLogs", timespan=span, enforce_https=False)
        expect(f"azure: workspace {workspace} is refused", False)
    except HttpResponseError as error:
        expect(f"azure: workspace {workspace} is refused", error.status_code == status and error.error is not None, error)

sys.exit(1 if findings else 0)
