"""What counts as texts. The Arrow, pandas and polars objects are the libraries' own."""

import subprocess
import sys
from collections import deque

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from bertron_client import InvalidInputError
from bertron_client._inputs import collect_texts, encode_texts

TEXTS = ["one", "two words", "", "żółw 🐢"]


def pandas_series(dtype):
    def make(texts):
        return pandas.Series(texts, index=[7, 3, 5, 1], dtype=dtype)  # labels are not places

    return make


def labelled_series(texts):
    return pandas.Series(texts, index=["columns", "column_names", "to_pylist", "a"])


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        deque,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: dict(enumerate(texts)).values(),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: np.array(texts)[::-1][::-1],
        pa.array,
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts).dictionary_encode(),
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
        lambda texts: pa.table({"text": texts})["text"],
        pandas_series(object),
        pandas_series("string"),
        pandas_series("category"),
        labelled_series,
        lambda texts: polars.Series("text", texts),
    ],
)
def test_ordered_collections_become_lists_of_str(make):
    collected = collect_texts(make(TEXTS), "texts")
    assert collected == TEXTS
    assert {type(text) for text in collected} == {str}


def test_a_copy_is_made():
    texts = ["a"]
    assert collect_texts(texts, "texts") is not texts


def test_no_texts():
    for empty in ([], (), iter(()), np.array([], dtype=str), pa.array([], pa.string())):
        assert collect_texts(empty, "texts") == []


@pytest.mark.parametrize("text", ["a single text", b"bytes", bytearray(b"x"), np.str_("text")])
def test_a_single_text_is_a_type_error(text):
    with pytest.raises(TypeError, match=r"text_pairs is a single .*; write \[text\]"):
        collect_texts(text, "text_pairs")


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("a"), {"a": 1}, {"a": 1}.keys()])
def test_what_has_no_order_is_a_type_error(texts):
    with pytest.raises(TypeError, match=r"texts is a .*, which has no order; give a list"):
        collect_texts(texts, "texts")


@pytest.mark.parametrize("texts", [None, 3, np.array("text"), object()])
def test_what_is_no_collection_is_a_type_error(texts):
    with pytest.raises(TypeError, match=f"texts is a {type(texts).__name__}, a list of str is"):
        collect_texts(texts, "texts")


@pytest.mark.parametrize("make", [pa.table, pa.record_batch, pandas.DataFrame, polars.DataFrame])
def test_a_table_is_a_type_error_that_names_its_columns(make):
    table = make({"id": ["1", "2"], "text": ["a", "b"]})
    words = rf"texts is a {type(table).__name__} with the columns id, text; give one of them, as in"
    with pytest.raises(TypeError, match=words):
        collect_texts(table, "texts")


def test_a_table_of_many_columns_names_the_first_ones():
    table = pa.table({f"c{number}": ["a"] for number in range(1000)})
    with pytest.raises(TypeError, match=r"the columns c0, .*, c7 and 992 more; .* table\['c0'\]"):
        collect_texts(table, "texts")


def test_a_lazy_table_is_a_type_error_and_is_not_computed():
    with pytest.raises(TypeError):
        collect_texts(polars.LazyFrame({"text": ["a"]}), "texts")


def test_the_error_of_a_generator_is_its_own():
    def texts():
        yield "a"
        raise TypeError("of the caller's own making")

    with pytest.raises(TypeError, match=r"^of the caller's own making$"):
        collect_texts(texts(), "texts")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["fine", None], "NoneType"),
        (["fine", float("nan")], "float"),
        (np.array(["fine", None], dtype=object), "NoneType"),
        (np.ma.array(["fine", "x"], mask=[False, True]), "NoneType"),
        (pa.array(["fine", None]), "NoneType"),
        (["fine", b"x"], "bytes"),
        (["fine", ["a", "list"]], "list"),
    ],
)
def test_what_is_no_text_is_named_by_its_place(texts, kind):
    with pytest.raises(InvalidInputError) as caught:
        encode_texts(collect_texts(texts, "texts"), "texts")
    assert str(caught.value) == f"texts[1] is {kind}, a str is wanted"
    assert caught.value.index == 1


def test_a_missing_value_of_pandas_or_polars_is_named_by_its_place():
    for texts in (
        polars.Series(["a", None]),
        *(pandas.Series(["a", None], dtype=dtype) for dtype in (object, "string", "category")),
    ):
        with pytest.raises(InvalidInputError, match=r"texts\[1\] is \w+, a str is wanted"):
            encode_texts(collect_texts(texts, "texts"), "texts")


def test_texts_are_encoded_as_utf_8():
    assert encode_texts(TEXTS, "texts") == [text.encode() for text in TEXTS]
    assert encode_texts([np.str_("é")], "texts") == ["é".encode()]
    with pytest.raises(InvalidInputError, match=r"pairs\[1\] holds .* U\+D800 at character 2"):
        encode_texts(["fine", "ab\ud800"], "pairs")


def test_no_table_library_is_imported():
    program = (
        "import sys, bertron_client._inputs; "
        "print([m for m in ('pandas', 'polars', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
