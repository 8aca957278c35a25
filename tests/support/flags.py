"""Watches one flag through the official OpenFeature provider and says what it sees, one JSON line for
each change. Arguments: base address, token, workspace, flag, feature."""

import json
import sys
import time

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

base_url, token, workspace, flag, feature = sys.argv[1:]
api.set_provider(OFREPProvider(base_url, headers_factory=lambda: {"authorization": f"Bearer {token}"}))
client = api.get_client()


def say(what, details):
    code = details.error_code.value if details.error_code else None
    reason = details.reason.value if hasattr(details.reason, "value") else details.reason
    line = {"what": what, "value": details.value, "reason": reason, "variant": details.variant, "errorCode": code}
    print(json.dumps(line | {"metadata": dict(details.flag_metadata)}), flush=True)


def ask(name, default, context):
    return client.get_boolean_details(name, default, context)


here = EvaluationContext(targeting_key=workspace)
say("unknown flag", ask("no_such_flag", True, here))
say("unknown workspace", ask(flag, True, EvaluationContext(targeting_key="wrkspc_ghost")))
say("no workspace", ask(flag, True, EvaluationContext()))
say("feature", ask(feature, False, here))
last = None
while True:
    details = ask(flag, False, here)
    if details.value != last:
        last = details.value
        say("flag", details)
    time.sleep(0.005)
