// Package keyring keeps the keys of an encrypted store: the document with its key slots that stands in
// DIR/FORMAT (see FORMAT.md here), what opens it, and the ciphers that come out of it.
//
// A slot is opened by a passphrase or by a key file and gives the key-encryption key (KEK). The KEK opens
// the repository keys, one for each epoch, and the secret of the chunk ids. Files are sealed under a key
// that is derived from the newest epoch's repository key and from a random salt in the file's header.
//
// Rotate begins an epoch and replaces the KEK at once. It needs one secret, not all of them: a slot has a
// key pair, its secret wraps the private half, and the KEK is encrypted to the public half. So the slots
// that are left get the new KEK without their passphrases, and a slot that was removed before does not:
// who kept its secret and an old copy of the document reads what was written before the rotation and
// nothing that was written after it.
//
// What is guaranteed: a document that was damaged or changed never yields other keys than the right ones,
// it is refused; the same plaintext, key and nonce never meet twice as long as a file's record numbers
// are used once (File says how); secrets and keys do not print.
//
// A document that was changed must be durable before anything is sealed under a new epoch; Slots are
// therefore immutable, and the functions that change them return new ones with the keys to be used then.
// The package does not read or write files, and does not know what time it is.
package keyring
