#!/usr/bin/env python3
"""Opens golden.json with its passphrase by FORMAT.md alone, with pyca/cryptography (48 or newer) and no
code of this project, and prints what TestGoldenDocumentOpens pins. No test runs it."""
import base64, hashlib, hmac, json, pathlib, struct
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

doc = json.loads((pathlib.Path(__file__).parent / "golden.json").read_text())
store, passphrase = bytes(range(16)), b"correct horse"


def bind(label, *fields):
    return b"".join(struct.pack(">I", len(f)) + f for f in (label.encode(), *fields))


def derive(secret, salt, label):
    return HKDF(hashes.SHA256(), 32, salt, label.encode()).derive(secret)


def unwrap(key, text, aad):
    b = base64.b64decode(text)
    return AESGCM(key).decrypt(b[:12], b[12:], aad)


slot = doc["slots"][0]
cost, salt, public = slot["argon2id"], base64.b64decode(slot["salt"]), base64.b64decode(slot["public"])
slot_key = Argon2id(salt=salt, length=32, iterations=cost["time"], lanes=cost["threads"],
                    memory_cost=cost["memory_kib"]).derive(passphrase)


def identity(part):
    costs = struct.pack(">IIB", cost["time"], cost["memory_kib"], cost["threads"])
    return bind("livemount 2026 slot " + part, store, bytes.fromhex(slot["id"]), slot["kind"].encode(), costs, salt, public)


seed = unwrap(slot_key, slot["private"], identity("private"))
suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
wide = hashlib.shake_256(seed).digest(96)  # X-Wing: seed of ML-KEM (64), X25519 (32)
private = hpke.MLKEM768X25519PrivateKey(MLKEM768PrivateKey.from_seed_bytes(wide[:64]),
                                        X25519PrivateKey.from_private_bytes(wide[64:]))
kek = suite.decrypt(base64.b64decode(slot["kek"]), private, identity("kek"))
print("kek", kek.hex())

tags, wrap = derive(kek, None, "livemount 2026 tags"), derive(kek, None, "livemount 2026 wrap")
tag = bind("livemount 2026 slot tag", identity("tag"), slot["label"].encode(), slot["created"].encode(),
           base64.b64decode(slot["private"]))
assert hmac.digest(tags, tag, "sha256") == base64.b64decode(slot["tag"])

fields = [store, struct.pack(">I", doc["version"]), base64.b64decode(doc["hash"])]
for e in doc["epochs"]:
    fields += [struct.pack(">I", e["id"]), e["created"].encode(), base64.b64decode(e["key"])]
assert hmac.digest(tags, bind("livemount 2026 epochs tag", *fields), "sha256") == base64.b64decode(doc["tag"])

secret = unwrap(wrap, doc["hash"], bind("livemount 2026 hash", store))
print("hash", secret.hex())
print("hash secret", derive(secret, None, "livemount 2026 hash secret").hex())
for e in doc["epochs"]:
    n = e["id"]
    key = unwrap(wrap, e["key"], bind("livemount 2026 epoch", store, struct.pack(">I", n), e["created"].encode()))
    file = AESGCM(derive(key, bytes([1]) + bytes(31), "livemount 2026 file"))
    print("epoch", n, key.hex())
    print("meta", n, derive(key, None, "livemount 2026 metadata").hex())
    print("file", n, file.encrypt(struct.pack(">IQ", 0, 258), b"hello", b"aad").hex())
