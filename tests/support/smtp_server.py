"""A mail server for tests: aiosmtpd takes the mail, Python's email package reads it.

Prints one JSON object a line: first {"port": N}, then {"rcpt": ADDRESS, "answer": CODE} for every
recipient offered and {"mail": FACTS} for every mail taken. Ends when its standard input closes.
"""

import argparse
import asyncio
import email
import email.policy
import json
import logging
import ssl
import sys
import warnings

from aiosmtpd.controller import UnthreadedController
from aiosmtpd.smtp import AuthResult, LoginPassword


def say(**facts):
    print(json.dumps(facts), flush=True)


def facts(envelope, session):
    """What an independent reader finds in the mail."""
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)

    def body(kind):
        part = message.get_body(preferencelist=(kind,))
        return None if part is None else part.get_content().replace("\r\n", "\n")

    return {
        "envelope_from": envelope.mail_from,
        "envelope_to": envelope.rcpt_tos,
        "tls": session.ssl is not None,
        "login": session.auth_data if session.authenticated else None,
        "headers": {name.lower(): str(value) for name, value in message.items()},
        "header_names": [name for name, _ in message.items()],
        "ascii": envelope.content.isascii(),
        "longest_line": max(len(line) for line in envelope.content.splitlines()),
        "content_type": message.get_content_type(),
        "parts": [part.get_content_type() for part in message.walk()],
        "defects": [str(d) for part in message.walk() for d in part.defects],
        "text": body("plain"),
        "html": body("html"),
    }


class Handler:
    def __init__(self, options):
        self.refuse = dict(pair.rsplit("=", 1) for pair in options.refuse)
        self.refuse_once = dict(pair.rsplit("=", 1) for pair in options.refuse_once)
        self.refuse_all = options.refuse_all
        self.refuse_data = options.refuse_data

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        code = self.refuse_all or self.refuse.get(address) or self.refuse_once.pop(address, None)
        say(rcpt=address, answer=code or "250")
        if code:
            return f"{code} {address} is not taken now"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.refuse_data:
            return f"{self.refuse_data} this mail is not taken"
        say(mail=facts(envelope, session))
        return "250 OK"


def authenticator(login):
    user, password = login.split(":", 1)

    def check(server, session, envelope, mechanism, data):
        good = isinstance(data, LoginPassword) and data.login == user.encode() and data.password == password.encode()
        return AuthResult(success=good, auth_data=user if good else None, handled=False)

    return check


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["plain", "starttls", "tls"], default="plain")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--login", help="USER:PASSWORD that is demanded")
    parser.add_argument("--refuse", action="append", default=[], help="ADDRESS=CODE")
    parser.add_argument("--refuse-once", action="append", default=[], help="ADDRESS=CODE, the first time")
    parser.add_argument("--refuse-all", help="CODE for every recipient")
    parser.add_argument("--refuse-data", help="CODE for the mail itself")
    parser.add_argument("--port", type=int, default=0, help="any free one unless said")
    options = parser.parse_args()

    settings = {"hostname": "127.0.0.1", "port": options.port}
    if options.mode != "plain":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)
        if options.mode == "tls":
            # An outer TLS does not count as TLS for AUTH there.
            settings |= {"ssl_context": context, "auth_require_tls": False}
        else:
            settings |= {"tls_context": context, "require_starttls": True}
    if options.login:
        settings |= {"authenticator": authenticator(options.login), "auth_required": True}

    # Clients that break off are what the tests are about; their traces would bury a real failure.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    controller = UnthreadedController(Handler(options), loop=loop, **settings)
    controller.begin()
    say(port=controller.server.sockets[0].getsockname()[1])
    loop.add_reader(sys.stdin, lambda: sys.stdin.buffer.read1(1) or loop.stop())
    loop.run_forever()


main()
