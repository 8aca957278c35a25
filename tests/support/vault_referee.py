"""Opens one record of the vault as docs/VAULT.md says, with a library of its own."""
import json
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def field(value):
    return struct.pack(">I", len(value)) + value


def context(row):
    texts = ["cmek-watchdog vault context 1", row["kind"], row["workspace"], row["id"], row["data_key"]]
    numbers = [row["schema"], row["revision"], row["written_at"]]
    return b"".join(field(t.encode()) for t in texts) + b"".join(field(struct.pack(">Q", n)) for n in numbers)


row = json.loads(sys.argv[1])
envelope = bytes.fromhex(row["envelope"])
assert envelope[:4] == b"CWV1"
end = 5 + envelope[4]
assert envelope[5:end].decode() == row["data_key"]
nonce, sealed = envelope[end:end + 12], envelope[end + 12:]
cipher = AESGCM(bytes.fromhex(row["key"]))
record = json.loads(cipher.decrypt(nonce, sealed, context(row)))
try:
    cipher.decrypt(nonce, sealed, context({**row, "workspace": "another"}))
    moved = "opened"
except InvalidTag:
    moved = "refused"
print(json.dumps({"record": record, "moved": moved}))
