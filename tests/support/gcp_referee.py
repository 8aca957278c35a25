"""Referee of the fake Google Cloud KMS: the official Python client must meet the documented answers.

Called with the fake's address. Prints one line per finding; exit status 1 if there is any.
"""

import json
import sys
import urllib.request

from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceRestTransport

ADDRESS = sys.argv[1]
KMS = kms_v1.KeyManagementServiceClient(
    transport=KeyManagementServiceRestTransport(
        host=ADDRESS.removeprefix("http://"), url_scheme="http", credentials=AnonymousCredentials()
    )
)
State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
LOCATION = "projects/acme-keys/locations/europe-west1"
PLAIN, AAD = b"referee", b"purpose=referee"
# The default retry would hide a refusal for a minute.
ONCE = {"retry": None, "timeout": 10}
findings = []


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def expect(what, condition, seen=""):
    print(f"{'ok  ' if condition else 'BAD '} {what} {seen if not condition else ''}".rstrip())
    if not condition:
        findings.append(what)


def refused(what, call, kind, status, violation=None, reason=None, words=""):
    try:
        call()
    except exceptions.GoogleAPICallError as error:
        seen = f"{type(error).__name__} {error.message} {error.details}"
        body = error.response.json()["error"]
        # Over REST every 400 is one class and the details are plain dictionaries.
        types = [v["type"] for detail in error.details for v in detail.get("violations", [])]
        fits = type(error) is kind and body["status"] == status and words in error.message
        fits = fits and (violation is None or types == [violation]) and error.reason == reason
        expect(what, fits, seen)
    else:
        expect(what, False, "was answered")


def control(order, **body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{ADDRESS}/_fake/{order}", data, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=10).read()


def new_key(ring, name="ws-key"):
    body = {"purpose": kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT}
    request = {"parent": ring, "crypto_key_id": name, "crypto_key": body}
    return KMS.create_crypto_key(request=request, **ONCE)


def encrypt(name, aad=AAD):
    request = {"name": name, "plaintext": PLAIN, "additional_authenticated_data": aad,
               "plaintext_crc32c": crc32c(PLAIN), "additional_authenticated_data_crc32c": crc32c(aad)}
    return KMS.encrypt(request=request, **ONCE)


def decrypt(name, ciphertext, aad=AAD):
    request = {"name": name, "ciphertext": ciphertext, "additional_authenticated_data": aad,
               "ciphertext_crc32c": crc32c(ciphertext), "additional_authenticated_data_crc32c": crc32c(aad)}
    return KMS.decrypt(request=request, **ONCE)


def set_state(version, state):
    request = {"crypto_key_version": {"name": version, "state": state}, "update_mask": "state"}
    return KMS.update_crypto_key_version(request=request, **ONCE)


def round_trip(ring):
    key = new_key(ring)
    expect("a new key has an enabled primary", key.primary.state == State.ENABLED and key.primary.name.endswith("/1"), key)
    sealed = encrypt(key.name)
    expect("encrypt names the primary version", sealed.name == key.primary.name, sealed)
    expect("encrypt verifies both checksums",
           sealed.verified_plaintext_crc32c and sealed.verified_additional_authenticated_data_crc32c, sealed)
    expect("the ciphertext has its checksum", sealed.ciphertext_crc32c == crc32c(sealed.ciphertext), sealed)
    opened = decrypt(key.name, sealed.ciphertext)
    expect("decrypt gives the bytes back", opened.plaintext == PLAIN and opened.used_primary, opened)
    expect("the plaintext has its checksum", opened.plaintext_crc32c == crc32c(PLAIN), opened)
    bare = KMS.encrypt(request={"name": key.name, "plaintext": PLAIN}, **ONCE)
    expect("no checksum sent, none verified", not bare.verified_plaintext_crc32c, bare)
    return key, sealed


def refusals(ring, key, sealed):
    refused("wrong additional data", lambda: decrypt(key.name, sealed.ciphertext, b"other"),
            exceptions.BadRequest, "INVALID_ARGUMENT", words="Decryption failed")
    damaged = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
    refused("damaged ciphertext", lambda: decrypt(key.name, damaged),
            exceptions.BadRequest, "INVALID_ARGUMENT", words="Decryption failed")
    other = new_key(ring, "other")
    refused("ciphertext of another key", lambda: decrypt(other.name, sealed.ciphertext),
            exceptions.BadRequest, "INVALID_ARGUMENT", words="'name' refers to the correct CryptoKey")
    wrong = {"name": key.name, "ciphertext": sealed.ciphertext, "ciphertext_crc32c": 1}
    refused("wrong checksum sent", lambda: KMS.decrypt(request=wrong, **ONCE),
            exceptions.BadRequest, "INVALID_ARGUMENT", words="The checksum in field ciphertext_crc32c")
    refused("unknown key", lambda: encrypt(f"{ring}/cryptoKeys/none"),
            exceptions.NotFound, "NOT_FOUND", words=f"CryptoKey {ring}/cryptoKeys/none not found")
    refused("unknown ring", lambda: encrypt(f"{LOCATION}/keyRings/none/cryptoKeys/none"),
            exceptions.NotFound, "NOT_FOUND", words="KeyRing ")
    signing = {"purpose": kms_v1.CryptoKey.CryptoKeyPurpose.ASYMMETRIC_SIGN}
    signer = KMS.create_crypto_key(request={"parent": ring, "crypto_key_id": "signer", "crypto_key": signing}, **ONCE)
    refused("key of another purpose", lambda: encrypt(signer.name),
            exceptions.BadRequest, "FAILED_PRECONDITION", words="This operation requires ENCRYPT_DECRYPT")
    right = {"principal": "*", "permission": "cloudkms.cryptoKeyVersions.useToDecrypt", "resource": key.name}
    control("deny", **right)
    refused("denied", lambda: decrypt(key.name, sealed.ciphertext),
            exceptions.Forbidden, "PERMISSION_DENIED", reason="IAM_PERMISSION_DENIED", words="(or it may not exist)")
    encrypt(key.name)
    control("allow", **right)
    decrypt(key.name, sealed.ciphertext)


def life_of_a_version(key, sealed):
    version = key.primary.name
    expect("disabled", set_state(version, State.DISABLED).state == State.DISABLED)
    for what, call in (("encrypt", lambda: encrypt(key.name)), ("decrypt", lambda: decrypt(key.name, sealed.ciphertext))):
        refused(f"{what} under a disabled version", call, exceptions.BadRequest, "FAILED_PRECONDITION",
                violation="KEY_DISABLED", words="is not enabled, current state is: DISABLED")
    set_state(version, State.ENABLED)
    decrypt(key.name, sealed.ciphertext)
    scheduled = KMS.destroy_crypto_key_version(request={"name": version}, **ONCE)
    expect("scheduled for destruction, with its date",
           scheduled.state == State.DESTROY_SCHEDULED and (scheduled.destroy_time - scheduled.create_time).days == 30, scheduled)
    refused("decrypt while scheduled", lambda: decrypt(key.name, sealed.ciphertext),
            exceptions.BadRequest, "FAILED_PRECONDITION", violation="KEY_DESTROY_SCHEDULED")
    refused("enabling while scheduled", lambda: set_state(version, State.ENABLED),
            exceptions.BadRequest, "FAILED_PRECONDITION")
    restored = KMS.restore_crypto_key_version(request={"name": version}, **ONCE)
    expect("restored as disabled", restored.state == State.DISABLED and not restored.destroy_time, restored)
    set_state(version, State.ENABLED)
    decrypt(key.name, sealed.ciphertext)
    fresh = KMS.create_crypto_key_version(request={"parent": key.name}, **ONCE)
    expect("a created version is not yet primary", KMS.get_crypto_key(request={"name": key.name}, **ONCE).primary.name == version)
    KMS.update_crypto_key_primary_version(request={"name": key.name, "crypto_key_version_id": "2"}, **ONCE)
    expect("rotated", encrypt(key.name).name == fresh.name)
    old = decrypt(key.name, sealed.ciphertext)
    expect("the old version still opens, not as primary", old.plaintext == PLAIN and not old.used_primary, old)
    KMS.destroy_crypto_key_version(request={"name": version}, **ONCE)
    control("advance", seconds=31 * 86400)
    states = [v.state for v in KMS.list_crypto_key_versions(request={"parent": key.name, "page_size": 1}, **ONCE)]
    expect("destroyed in time, listed by pages", states == [State.DESTROYED, State.ENABLED], states)
    refused("decrypt under a destroyed version", lambda: decrypt(key.name, sealed.ciphertext),
            exceptions.BadRequest, "FAILED_PRECONDITION", violation="KEY_DESTROYED")
    refused("restoring a destroyed version", lambda: KMS.restore_crypto_key_version(request={"name": version}, **ONCE),
            exceptions.BadRequest, "FAILED_PRECONDITION")
    encrypt(key.name)


def main():
    ring = KMS.create_key_ring(request={"parent": LOCATION, "key_ring_id": "referee", "key_ring": {}}, **ONCE).name
    refused("a ring twice", lambda: KMS.create_key_ring(request={"parent": LOCATION, "key_ring_id": "referee", "key_ring": {}}, **ONCE),
            exceptions.Conflict, "ALREADY_EXISTS")
    key, sealed = round_trip(ring)
    refusals(ring, key, sealed)
    life_of_a_version(key, sealed)
    print(f"{len(findings)} findings")
    sys.exit(1 if findings else 0)


main()
