import hashlib

from kvtuner_core.store import Store


def test_bytes_are_kept_once_under_their_digest():
    data = bytes(range(256)) * 10
    with Store.open(None) as store:
        first = store.put_upload("a.jsonl", data)
        assert store.put_upload("b.jsonl", data) == first
        assert (first.name, first.size, first.digest) == ("a.jsonl", 2560, hashlib.sha256(data).hexdigest())
        assert store.get_upload(first.digest) == data
        other = store.put_upload("empty.txt", b"")
        assert set(store.uploads()) == {first, other}
        store.delete_upload(first.digest)
        assert store.get_upload(first.digest) is None
        assert store.uploads() == (other,)
