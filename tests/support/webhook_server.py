"""An HTTP receiver for tests that checks what it gets by independent code.

--kind standard: the signature, by the standardwebhooks package; --kind slack: the blocks, by
slack_sdk; --kind any: nothing. Prints one JSON object a line: {"port": N}, then one per request.
--answer CODE[:RETRY_AFTER] may be given several times: one per request, then the usual good one.
Ends when its standard input closes.
"""

import argparse
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def checked(kind, secret, headers, body):
    """None if good, else what is wrong."""
    try:
        if kind == "standard":
            from standardwebhooks import Webhook

            Webhook(secret).verify(body, headers)
        elif kind == "slack":
            from slack_sdk.models.blocks import Block

            blocks = json.loads(body)["blocks"]
            parsed = Block.parse_all(blocks)
            if len(parsed) != len(blocks) or not blocks:
                return "not every block is one that Slack knows"
            for block in parsed:
                block.validate_json()
    except Exception as error:  # whatever is wrong is the finding
        return f"{type(error).__name__}: {error}"
    return None


def handler(options):
    answers = list(options.answer)

    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, code, retry_after=None):
            text = b"ok"
            self.send_response(code)
            self.send_header("content-length", str(len(text)))
            if retry_after:
                self.send_header("retry-after", retry_after)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def do_HEAD(self):
            self.answer(405)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            wrong = checked(options.kind, options.secret, headers, body)
            print(json.dumps({"wrong": wrong, "path": self.path, "headers": headers, "body": body.decode()}), flush=True)
            if wrong:
                return self.answer(400)
            code, _, after = (answers.pop(0) if answers else options.good).partition(":")
            return self.answer(int(code), after)

        def log_message(self, *arguments):
            pass

    return Receiver


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["standard", "slack", "any"], default="any")
    parser.add_argument("--secret")
    parser.add_argument("--good", default="200")
    parser.add_argument("--answer", action="append", default=[])
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(options))
    print(json.dumps({"port": server.server_port}), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


main()
