"""Referee of the AWS KMS servers that our tests use: boto3 must meet the documented answers.

Called with a JSON object on standard input: endpoint, region, access_key, secret, stage, keys (name to ARN) and, in the
second stage, blobs (name to base64). The first stage wraps under every key and prints the blobs; between the stages
the owner changes the keys; the second stage expects the documented refusals. Lines begin with "ok " or "BAD ".
"""

import base64
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ORDER = json.load(sys.stdin)
ONCE = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10)
LOGIN = dict(
    endpoint_url=ORDER["endpoint"],
    region_name=ORDER["region"],
    aws_access_key_id=ORDER["access_key"],
    aws_secret_access_key=ORDER["secret"],
    config=ONCE,
)
KMS = boto3.client("kms", **LOGIN)
CONTEXT = {"purpose": "referee"}
PLAIN = b"referee"
BAD = []


def expect(what, condition, seen=""):
    print(f"ok  {what}" if condition else f"BAD {what}: {seen}")
    if not condition:
        BAD.append(what)


def refused(what, code, call, words=""):
    try:
        call()
    except ClientError as error:
        found = error.response["Error"]
        fits = found["Code"] == code and words in found.get("Message", "")
        expect(what, fits, f"{found['Code']}: {found.get('Message')}")
    else:
        expect(what, False, "was answered")


def decrypt(name, context=CONTEXT):
    blob = base64.b64decode(ORDER["blobs"][name])
    return KMS.decrypt(KeyId=ORDER["keys"][name], CiphertextBlob=blob, EncryptionContext=context)


def encrypt(name):
    return KMS.encrypt(KeyId=ORDER["keys"][name], Plaintext=PLAIN, EncryptionContext=CONTEXT)


def state(name):
    return KMS.describe_key(KeyId=ORDER["keys"][name])["KeyMetadata"]["KeyState"]


def first():
    blobs = {}
    for name, arn in ORDER["keys"].items():
        answer = encrypt(name)
        expect(f"{name} wraps and names its key", answer["KeyId"] == arn, answer["KeyId"])
        blob = answer["CiphertextBlob"]
        opened = KMS.decrypt(KeyId=arn, CiphertextBlob=blob, EncryptionContext=CONTEXT)
        expect(f"{name} opens to the same bytes", opened["Plaintext"] == PLAIN, opened["Plaintext"])
        expect(f"{name} names its material", bool(opened.get("KeyMaterialId")), opened.keys())
        expect(f"{name} is described as enabled", state(name) == "Enabled", state(name))
        blobs[name] = base64.b64encode(blob).decode()
    print(json.dumps(blobs))


def second():
    expect("good still opens", decrypt("good")["Plaintext"] == PLAIN)
    refused("a wrong context", "InvalidCiphertextException", lambda: decrypt("good", {"purpose": "other"}))
    for call, verb in ((encrypt, "wrap"), (decrypt, "unwrap")):
        refused(f"disabled: {verb}", "DisabledException", lambda: call("disabled"), "is disabled")
        refused(f"pending: {verb}", "KMSInvalidStateException", lambda: call("pending"), "is pending deletion")
    expect("disabled is described", state("disabled") == "Disabled", state("disabled"))
    expect("pending is described", state("pending") == "PendingDeletion", state("pending"))
    refused("denied: unwrap", "AccessDeniedException", lambda: decrypt("denied"), "kms:Decrypt")
    expect("denied: wrap is still allowed", bool(encrypt("denied")["CiphertextBlob"]))
    missing = ORDER["keys"]["good"].rsplit("/", 1)[0] + "/11111111-2222-3333-4444-555555555555"
    refused("no such key", "NotFoundException", lambda: KMS.encrypt(KeyId=missing, Plaintext=PLAIN))
    caller = boto3.client("sts", **LOGIN).get_caller_identity()["Arn"]
    expect("the caller has a name", caller.startswith("arn:aws:"), caller)


def rotation():
    """Own account, and where ours is another one."""
    status = KMS.get_key_rotation_status(KeyId=ORDER["keys"]["ours"])
    expect("the rotation is on, with its period", status["KeyRotationEnabled"] and status["RotationPeriodInDays"] == 365, status)
    expect("the next date is a date", hasattr(status["NextRotationDate"], "year"), status)
    pages = list(KMS.get_paginator("list_key_rotations").paginate(KeyId=ORDER["keys"]["ours"]))
    dates = [row["RotationDate"] for page in pages for row in page["Rotations"]]
    expect("all rotations are listed", len(dates) == ORDER["rotations"] and dates == sorted(dates), dates)
    theirs = ORDER["keys"]["theirs"]
    refused("no status across accounts", "AccessDeniedException", lambda: KMS.get_key_rotation_status(KeyId=theirs))
    refused("no list across accounts", "AccessDeniedException", lambda: KMS.list_key_rotations(KeyId=theirs))


{"first": first, "second": second, "rotation": rotation}[ORDER["stage"]]()
sys.exit(1 if BAD else 0)
