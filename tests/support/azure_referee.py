"""Referee over the Azure fake: Microsoft's own client must see in it what it would see in Key Vault.

Takes the fake's port, its root certificate and a control port: the fake's hands are moved by lines sent to that port.
Prints one line per expectation and ends with 1 if any is not met.
"""
import hashlib
import os
import socket
import sys
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

PORT, ROOT, CONTROL = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
FAILED = []


class StaticToken:
    def get_token(self, *scopes, **kwargs):
        return AccessToken("let-me-in", int(time.time()) + 3600)


OPTIONS = dict(verify_challenge_resource=False, connection_verify=ROOT, retry_total=0)
CLIENT = KeyClient(f"https://127.0.0.1:{PORT}", StaticToken(), **OPTIONS)


def hand(line):
    """Moves the fake by its test interface and waits until it is done."""
    with socket.create_connection(("127.0.0.1", CONTROL), timeout=20) as control:
        control.sendall(line.encode() + b"\n")
        assert control.makefile().readline() == "done\n", line


def check(what, got, expected):
    good = got == expected
    print(("ok   " if good else "FAIL ") + f"{what}: {got!r}" + ("" if good else f", expected {expected!r}"))
    if not good:
        FAILED.append(what)


def crypto(key):
    # Key identifiers carry the vault's name; the referee reaches it by address.
    return CryptographyClient(f"https://127.0.0.1:{PORT}/keys/{key.name}/{key.properties.version}", StaticToken(), **OPTIONS)


def refusal(call):
    """Class, status, code and inner code of a refused call."""
    try:
        call()
    except HttpResponseError as error:
        inner = (error.error.innererror or {}) if error.error else {}
        return type(error).__name__, error.status_code, error.error.code if error.error else None, inner.get("code")
    return "answered"


def plainly(inner, status=403):
    return "HttpResponseError", status, "Forbidden", inner


def digest(plain):
    return hashlib.sha256(plain).hexdigest()


def main():
    algorithm = KeyWrapAlgorithm.rsa_oaep_256
    key = CLIENT.get_key("k")
    check("get_key names the key", (key.name, key.key_type.value, key.properties.enabled), ("k", "RSA", True))
    check("get_key dates from the virtual clock", key.properties.created_on.year, 2026)
    check("get_key is recoverable", (key.properties.recoverable_days, key.properties.recovery_level), (90, "Recoverable+Purgeable"))

    canary = os.urandom(32)
    before = digest(canary)
    # This client wraps with the public half by itself, so the modulus that the fake tells must be the real one.
    wrapped = crypto(key).wrap_key(algorithm, canary).encrypted_key
    check("what was wrapped locally opens in the vault", digest(crypto(key).unwrap_key(algorithm, wrapped).key), before)
    check("damaged bytes are refused", refusal(lambda: crypto(key).unwrap_key(algorithm, bytes(256))), ("HttpResponseError", 400, "BadParameter", None))
    check("an algorithm of another key type is refused", refusal(lambda: crypto(key).unwrap_key(KeyWrapAlgorithm.aes_256, wrapped))[1:3], (400, "BadParameter"))

    newer = CLIENT.rotate_key("k")
    check("rotation makes another version", newer.properties.version != key.properties.version, True)
    listed = sorted(one.version for one in CLIENT.list_properties_of_key_versions("k"))
    check("both versions are listed", listed, sorted([key.properties.version, newer.properties.version]))
    check("the old version still opens its own", digest(crypto(key).unwrap_key(algorithm, wrapped).key), before)

    CLIENT.update_key_properties("k", version=key.properties.version, enabled=False)
    check("a disabled version is refused", refusal(lambda: crypto(key).unwrap_key(algorithm, wrapped)), plainly("KeyDisabled"))
    check("a disabled version can be read", CLIENT.get_key("k", key.properties.version).properties.enabled, False)
    check("the current version stays", CLIENT.get_key("k").properties.enabled, True)
    CLIENT.update_key_properties("k", version=key.properties.version, enabled=True)
    check("enabled again it opens", digest(crypto(key).unwrap_key(algorithm, wrapped).key), before)

    hand("deny unwrap")
    check("a missing role is refused", refusal(lambda: crypto(key).unwrap_key(algorithm, wrapped)), plainly("ForbiddenByRbac"))
    hand("allow unwrap")
    hand("deny read")
    check("a missing right to look is refused", refusal(lambda: CLIENT.get_key("k")), plainly("ForbiddenByRbac"))
    hand("allow read")
    hand("firewall")
    check("the firewall refuses", refusal(lambda: CLIENT.get_key("k")), plainly("ForbiddenByFirewall"))
    hand("open")
    hand("throttle")
    check("throttling is told", refusal(lambda: CLIENT.get_key("k"))[1:3], (429, "Throttled"))

    check("an unknown key is not found", refusal(lambda: CLIENT.get_key("never-made")), ("ResourceNotFoundError", 404, "KeyNotFound", None))
    deleted = CLIENT.begin_delete_key("k").result()
    check("a deleted key tells its purge", (deleted.scheduled_purge_date - deleted.deleted_date).days, 90)
    check("a deleted key is not found", refusal(lambda: crypto(key).unwrap_key(algorithm, wrapped)), ("ResourceNotFoundError", 404, "KeyNotFound", None))
    check("the recycle bin has it", CLIENT.get_deleted_key("k").name, "k")
    taken = refusal(lambda: CLIENT.create_rsa_key("k"))
    check("its name is taken", taken, ("ResourceExistsError", 409, "Conflict", "ObjectIsDeletedButRecoverable"))
    CLIENT.begin_recover_deleted_key("k").result()
    check("recovered it opens", digest(crypto(key).unwrap_key(algorithm, wrapped).key), before)
    CLIENT.begin_delete_key("k").result()
    hand("advance 91")
    try:
        CLIENT.get_deleted_key("k")
        check("purged when due", "still there", "gone")
    except ResourceNotFoundError as error:
        check("purged when due", error.error.code, "KeyNotFound")


main()
print(f"{len(FAILED)} expectations not met")
sys.exit(1 if FAILED else 0)
