"""Values to entries and back, without the text between."""

from hypothesis import given, settings

from kvtuner_core.exchange.entries import document_of, entry_of
from tests.exchange.documents import documents, example


@settings(deadline=None, max_examples=40)
@given(documents())
def test_entries_lose_nothing(document):
    assert document_of(entry_of(document)) == document


def test_a_layer_with_heads_names_its_own_bits_only_where_it_has_some():
    entry = entry_of(example(layers=3, heads=True))
    assert entry.layers[0].key_bits is None
    assert entry.layers[0].heads is not None
    assert entry.layers[1].heads is None
